"""How far a bfloat16 model walks away from its float32 twin. Run in `tests`: python -m parity.drift."""

import copy
import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from griffinlm.checkpoint.initial import initial_tensors
from griffinlm.config import AttentionConfig, DecayRange, ModelConfig, RecurrentConfig
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
    print("| initial decays | tokens | h | logits |\n| --- | --- | --- | --- |")
    for decay_range in get_args(DecayRange):
        for drift in drifts(decay_range):
            print(f"| {decay_range} | {drift.num_tokens:,} | {drift.hidden:.1e} | {drift.logits:.1e} |")
