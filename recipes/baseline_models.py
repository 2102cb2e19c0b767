"""Griffin, Hawk and the multi-query transformer of the Griffin paper, with equal numbers of parameters."""

import math
from dataclasses import dataclass
from functools import partial

from griffinlm.config import AttentionConfig, BlockKind, ModelConfig, RecurrentConfig
from griffinlm.presets import GRIFFIN_PATTERN, HAWK_PATTERN, TRANSFORMER_PATTERN

PATTERNS: dict[str, tuple[BlockKind, ...]] = {
    "griffin": GRIFFIN_PATTERN,
    "hawk": HAWK_PATTERN,
    "mqa": TRANSFORMER_PATTERN,
}
NUM_GATE_BLOCKS = 16
LARGEST_EXPANSION = 5


@dataclass(frozen=True)
class Size:
    """What the three models of a comparison share."""

    vocab_size: int
    width: int
    num_layers: int
    head_size: int
    window_tokens: int
    """Of Griffin's local attention; the transformer's is global."""


def baseline(kind: str, size: Size) -> ModelConfig:
    """One of the three, in the proportions of the paper's appendix C.

    The recurrence is 4/3 as wide as the model, heads add up to its width, and Hawk's MLP is 3 times as wide. Attention
    has fewer parameters than a recurrent block; the MLPs of the models that have it are wider by as many.
    """
    hawk = _with_mlp("hawk", size, 3 * size.width)
    candidates = map(partial(_with_mlp, kind, size), range(3 * size.width, LARGEST_EXPANSION * size.width, 8))
    return min(candidates, key=lambda config: abs(config.num_parameters - hawk.num_parameters))


def _with_mlp(kind: str, size: Size, mlp_hidden: int) -> ModelConfig:
    pattern = PATTERNS[kind]
    recurrent_width = NUM_GATE_BLOCKS * round(4 * size.width / 3 / NUM_GATE_BLOCKS)
    window_tokens = size.window_tokens if "local_attention" in pattern else None
    return ModelConfig(
        vocab_size=size.vocab_size,
        width=size.width,
        num_layers=size.num_layers,
        block_pattern=pattern,
        mlp_hidden=mlp_hidden,
        recurrent=RecurrentConfig(recurrent_width, NUM_GATE_BLOCKS, initial_decay_range="decay_to_the_eighth")
        if "recurrent" in pattern
        else None,
        attention=None
        if kind == "hawk"
        else AttentionConfig(size.width // size.head_size, size.head_size, window_tokens),
        embedding_scale=math.sqrt(size.width),
    )
