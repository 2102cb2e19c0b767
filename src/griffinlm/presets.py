"""Configurations by name: published models, the sizes of the Griffin paper, the bundled model, small ones for tests.

`kestrel-500m` has RecurrentGemma's proportions and vocabulary at a size for small computers; nobody has published it.
"""

import math
import struct

from griffinlm.config import AttentionConfig, BlockKind, ModelConfig, RecurrentConfig

GRIFFIN_PATTERN: tuple[BlockKind, ...] = ("recurrent", "recurrent", "local_attention")
HAWK_PATTERN: tuple[BlockKind, ...] = ("recurrent",)
TRANSFORMER_PATTERN: tuple[BlockKind, ...] = ("global_attention",)


def bfloat16_sqrt(width: int) -> float:
    """sqrt(width) rounded to bfloat16: the factor on RecurrentGemma's embedding in every precision (50.5 for 2B)."""
    (bits,) = struct.unpack("<I", struct.pack("<f", math.sqrt(width)))
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    (value,) = struct.unpack("<f", struct.pack("<I", rounded))
    return value


def _recurrentgemma(width: int, num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=256_000,
        width=width,
        num_layers=num_layers,
        block_pattern=GRIFFIN_PATTERN,
        mlp_hidden=3 * width,
        recurrent=RecurrentConfig(width=width, num_gate_blocks=num_heads),
        attention=AttentionConfig(num_heads=num_heads, head_size=256, window_tokens=2048),
        embedding_scale=bfloat16_sqrt(width),
        logit_soft_cap=30.0,
    )


def _deepmind_7b(pattern: tuple[BlockKind, ...]) -> ModelConfig:
    """The 7B models of the paper as DeepMind's package defines them: a gate block per head, decay range of the code."""
    return ModelConfig(
        vocab_size=256_000,
        width=4096,
        num_layers=32,
        block_pattern=pattern,
        mlp_hidden=12_288,
        recurrent=RecurrentConfig(width=5632, num_gate_blocks=32),
        attention=AttentionConfig(num_heads=32, head_size=128, window_tokens=1024)
        if "local_attention" in pattern
        else None,
    )


def _paper(width: int, lru_width: int, num_layers: int, pattern: tuple[BlockKind, ...]) -> ModelConfig:
    """A row of the paper's table of sizes (appendix C): head size 128, 16 gate blocks, expansion 3, window 1,024.

    The paper does not publish the vocabulary; 256,000 is that of DeepMind's 7B presets.
    """
    attention = AttentionConfig(
        num_heads=width // 128, head_size=128, window_tokens=1024 if "local_attention" in pattern else None
    )
    return ModelConfig(
        vocab_size=256_000,
        width=width,
        num_layers=num_layers,
        block_pattern=pattern,
        mlp_hidden=3 * width,
        recurrent=RecurrentConfig(width=lru_width, num_gate_blocks=16, initial_decay_range="decay_to_the_eighth")
        if "recurrent" in pattern
        else None,
        attention=None if pattern == HAWK_PATTERN else attention,
    )


_PAPER_SIZES = {
    "100m": (768, 1024, 12),
    "200m": (1024, 1536, 12),
    "400m": (1536, 2048, 12),
    "1.3b": (2048, 2560, 24),
    "3b": (3072, 4096, 24),
}

_PAPER_TRANSFORMER_NAMES = {"100m": "80m", "200m": "140m", "400m": "320m", "1.3b": "1.1b", "3b": "2.5b"}
"""The table's rows name Griffin's sizes; multi-query attention has fewer parameters, so the transformer of a row is
smaller and is named by what it has, as the paper does for its MQA 6B (the row of Griffin 7B)."""

PRESETS: dict[str, ModelConfig] = {
    "recurrentgemma-2b": _recurrentgemma(2560, 26, 10),
    "recurrentgemma-9b": _recurrentgemma(4096, 38, 16),
    "gemma-2b": ModelConfig(
        vocab_size=256_000,
        width=2048,
        num_layers=18,
        block_pattern=TRANSFORMER_PATTERN,
        mlp_hidden=16_384,
        attention=AttentionConfig(num_heads=8, head_size=256, rope_fraction=1.0),
        use_bias=False,
        embedding_scale=math.sqrt(2048),
    ),
    **{f"griffin-{size}": _paper(*sizes, GRIFFIN_PATTERN) for size, sizes in _PAPER_SIZES.items()},
    "griffin-7b": _deepmind_7b(GRIFFIN_PATTERN),
    "griffin-14b": _paper(5120, 8192, 40, GRIFFIN_PATTERN),
    **{f"hawk-{size}": _paper(*sizes, HAWK_PATTERN) for size, sizes in _PAPER_SIZES.items()},
    "hawk-7b": _deepmind_7b(HAWK_PATTERN),
    **{
        f"mqa-{_PAPER_TRANSFORMER_NAMES[size]}": _paper(*sizes, TRANSFORMER_PATTERN)
        for size, sizes in _PAPER_SIZES.items()
    },
    "mqa-6b": _paper(4096, 5632, 32, TRANSFORMER_PATTERN),
    "eyas": ModelConfig(
        vocab_size=8192,
        width=320,
        num_layers=6,
        block_pattern=GRIFFIN_PATTERN,
        mlp_hidden=960,
        recurrent=RecurrentConfig(width=320, num_gate_blocks=4),
        attention=AttentionConfig(num_heads=5, head_size=64, window_tokens=512),
        embedding_scale=bfloat16_sqrt(320),
        logit_soft_cap=30.0,
    ),
    "kestrel-500m": _recurrentgemma(1024, 18, 4),
    "tiny-griffin": ModelConfig(
        vocab_size=259,
        width=32,
        num_layers=5,
        block_pattern=GRIFFIN_PATTERN,
        mlp_hidden=48,
        recurrent=RecurrentConfig(width=40, num_gate_blocks=4),
        attention=AttentionConfig(num_heads=2, head_size=16, window_tokens=7),
        embedding_scale=bfloat16_sqrt(32),
        logit_soft_cap=30.0,
    ),
    "tiny-hawk": ModelConfig(
        vocab_size=259,
        width=32,
        num_layers=3,
        block_pattern=HAWK_PATTERN,
        mlp_hidden=48,
        recurrent=RecurrentConfig(width=40, num_gate_blocks=4),
    ),
    "tiny-gemma": ModelConfig(
        vocab_size=259,
        width=32,
        num_layers=3,
        block_pattern=TRANSFORMER_PATTERN,
        mlp_hidden=64,
        attention=AttentionConfig(num_heads=2, head_size=16, rope_fraction=1.0),
        use_bias=False,
        embedding_scale=math.sqrt(32),
    ),
}
