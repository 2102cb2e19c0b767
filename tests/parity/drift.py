"""How far bfloat16 walks away: RG-LRU from float64, a model from float32. Run in `tests`: python -m parity.drift."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch
from tolerances import disagreement
from torch import Tensor

from griffinlm.checkpoint.initial import initial_tensors
from griffinlm.config import AttentionConfig, DecayRange, ModelConfig, RecurrentConfig
from griffinlm.kernels.linear_scan.chunked import rg_lru
from griffinlm.model.blocks import RecurrentState
from griffinlm.model.griffin import Griffin, GriffinState
from griffinlm.presets import GRIFFIN_PATTERN, bfloat16_sqrt

from .models import griffin

LENGTHS = (64, 256, 1024, 4096)
RECURRENT = RecurrentConfig(width=160, num_gate_blocks=4)
CONFIG = ModelConfig(
    vocab_size=512,
    width=128,
    num_layers=6,
    block_pattern=GRIFFIN_PATTERN,
    mlp_hidden=384,
    recurrent=RECURRENT,
    attention=AttentionConfig(num_heads=2, head_size=64, window_tokens=128),
    embedding_scale=bfloat16_sqrt(128),
    logit_soft_cap=30.0,
)


RG_LRU_LENGTHS, RG_LRU_WIDTH = (64, 2048, 8192), 256


def rg_lru_drift(num_tokens: int) -> tuple[float, float, float]:
    """Of bfloat16 against float64 on unrounded inputs N(0, 1): relative L2 error of y, and the measure of y and h."""
    generator = torch.Generator().manual_seed(num_tokens)
    x, input_gate, recurrence_gate = torch.randn(3, 1, num_tokens, RG_LRU_WIDTH, generator=generator).double()
    decay = torch.linspace(0.9, 0.999, RG_LRU_WIDTH, dtype=torch.float64)
    exact = [x, input_gate, recurrence_gate, torch.log(1.0 / decay - 1.0)]
    reset, initial = torch.zeros(1, num_tokens, dtype=torch.bool), torch.zeros(1, RG_LRU_WIDTH)
    y, final = rg_lru(*(given.bfloat16() for given in exact), reset, initial)
    expected_y, expected_final = rg_lru(*exact, reset, initial.double())
    return relative_error(y, expected_y), disagreement(y, expected_y), disagreement(final, expected_final)


class Drift(NamedTuple):
    """Relative L2 errors of bfloat16 against float32 after `num_tokens` of one document."""

    num_tokens: int
    hidden: float
    """h of the recurrent block that is furthest away."""
    logits: float
    """The last 64 tokens' logits."""


def drifts(initial_decay_range: DecayRange, lengths: tuple[int, ...] = LENGTHS) -> Iterator[Drift]:
    """Reads one random document in both precisions, from the same weights: initial values rounded to bfloat16."""
    recurrent = dataclasses.replace(RECURRENT, initial_decay_range=initial_decay_range)
    config = dataclasses.replace(CONFIG, recurrent=recurrent)
    low = griffin(config, initial_tensors(config, seed=0)).bfloat16()
    high = copy.deepcopy(low).float()
    tokens = torch.randint(config.vocab_size, (1, lengths[-1]), generator=torch.Generator().manual_seed(0))
    low_state = high_state = None
    start = 0
    for stop in lengths:
        low_logits, low_state = _read(low, tokens[:, start:stop], low_state)
        high_logits, high_state = _read(high, tokens[:, start:stop], high_state)
        hidden = [
            relative_error(a.hidden, b.hidden)
            for a, b in zip(low_state.blocks, high_state.blocks, strict=True)
            if isinstance(a, RecurrentState) and isinstance(b, RecurrentState)
        ]
        yield Drift(stop, max(hidden), relative_error(low_logits[:, -64:], high_logits[:, -64:]))
        start = stop


@torch.no_grad()
def _read(model: Griffin, tokens: Tensor, state: GriffinState | None) -> tuple[Tensor, GriffinState]:
    logits, after = model(tokens, state)
    assert logits is not None
    return logits, after


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| in the L2 norm."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


if __name__ == "__main__":
    print("| tokens | relative L2 error of y | measure, y | measure, final state |\n| --- | --- | --- | --- |")
    for num_tokens in RG_LRU_LENGTHS:
        print(f"| {num_tokens:,} | " + " | ".join(f"{error:.1e}" for error in rg_lru_drift(num_tokens)) + " |")
    print("| initial decays | tokens | h | logits |\n| --- | --- | --- | --- |")
    for decay_range in get_args(DecayRange):
        for drift in drifts(decay_range):
            print(f"| {decay_range} | {drift.num_tokens:,} | {drift.hidden:.1e} | {drift.logits:.1e} |")
