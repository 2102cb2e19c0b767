"""Models of published shapes with random weights, made on the device, and the memory of their conversations."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpu.measuring import Bench
from griffinlm.config import BlockKind, ModelConfig
from griffinlm.kernels.linear_scan import chunked
from griffinlm.kernels.local_attention import reference
from griffinlm.model import blocks, decoding, fused_step, layers
from griffinlm.model.blocks import AttentionState, RecurrentState
from griffinlm.model.cuda_graph import Program
from griffinlm.model.decoding import TokenReader, read_token
from griffinlm.model.griffin import Griffin, GriffinState
from griffinlm.model.sampling import Draws, draw_tokens

SMOKE_PRESETS = {"recurrentgemma-2b": "tiny-griffin", "gemma-2b": "tiny-gemma"}
LARGEST_WEIGHT = 0.02


def config_of(bench: Bench, preset: str) -> ModelConfig:
    """The preset; where all is tiny, a tiny one of the same family."""
    if not bench.smoke:
        return ModelConfig.preset(preset)
    family = {"griffin": "tiny-griffin", "hawk": "tiny-hawk", "mqa": "tiny-gemma"}
    return ModelConfig.preset(SMOKE_PRESETS.get(preset) or family[preset.split("-")[0]])


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Griffin:
    """A model whose parameters are small random numbers."""
    with torch.device("meta"):
        model = Griffin(config)
    model = model.to(dtype).to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.uniform_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return model


def filled_state(model: Griffin, rows: int, position: int, room: int) -> GriffinState:
    """Rows that have read `position` tokens, with random memory, and room for some more where attention is global."""
    config, weight, kept = model.config, model.embedding.weight, []
    for kind in config.block_kinds:
        if kind == "recurrent":
            assert config.recurrent is not None
            width, past = config.recurrent.width, config.recurrent.num_conv_taps - 1
            hidden = torch.randn(rows, width, device=weight.device)
            kept.append(RecurrentState(hidden, weight.new_zeros(rows, past, width)))
        else:
            shape = _ring_shape(config, kind, position + room)
            rings = (weight.new_empty(rows, *shape).uniform_(-1.0, 1.0) for _ in range(2))
            kept.append(AttentionState(*rings))
    num_tokens = torch.full((rows,), position, dtype=torch.int64, device=weight.device)
    return GriffinState(num_tokens, tuple(kept))


def state_bytes(config: ModelConfig, num_tokens: int, element: int) -> int:
    """Memory of one conversation."""
    total = 0
    for kind in config.block_kinds:
        if kind == "recurrent":
            assert config.recurrent is not None
            total += config.recurrent.width * (4 + element * (config.recurrent.num_conv_taps - 1))
        else:
            total += 2 * math.prod(_ring_shape(config, kind, num_tokens)) * element
    return total


def _ring_shape(config: ModelConfig, kind: BlockKind, num_tokens: int) -> tuple[int, int]:
    assert config.attention is not None
    window = config.attention.window_tokens if kind == "local_attention" else num_tokens
    assert window is not None
    return window, config.attention.head_size


def sampling_step(model: Griffin, state: GriffinState, reader: TokenReader | None = None) -> Program:
    """One token of every row, read and drawn at temperature 1, as one CUDA graph that feeds itself; int64 [B]."""
    rows, device = len(state.num_tokens), state.num_tokens.device
    slots, tokens = torch.arange(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)

    def column(value: float) -> Tensor:
        return torch.full((rows,), value, dtype=torch.float64, device=device)

    draws = Draws(column(1.0), torch.ones_like(tokens), column(1.0), column(-torch.inf), column(0.5))

    def run() -> Tensor:
        found = draw_tokens(read_token(model, state, slots, tokens, reader), draws, has_cuts=False)
        tokens.copy_(found.clamp(min=0))
        return found

    return Program(run, device)


@contextmanager
def plain_operators() -> Iterator[None]:
    """Within it models run without kernels: by the attention and, up to rounding, the scan that define them."""
    kept = layers.rg_lru, blocks.attention
    layers.rg_lru, blocks.attention = chunked.rg_lru, reference.attention
    try:
        yield
    finally:
        layers.rg_lru, blocks.attention = kept


@contextmanager
def decoding_by(attend: Callable[..., Tensor]) -> Iterator[None]:
    """Within it steps run or are captured with another form of `kernels.local_attention.operator.decode_attention`."""
    users = ((decoding, "decode_attention"), (decoding, "_decode_attention"), (fused_step, "decode_attention"))
    kept = [getattr(module, name) for module, name in users]
    for module, name in users:
        setattr(module, name, attend)
    try:
        yield
    finally:
        for (module, name), usual in zip(users, kept, strict=True):
            setattr(module, name, usual)


@contextmanager
def overlapping() -> Iterator[None]:
    """Within it each kernel of a step begins while the one before ends."""
    from griffinlm.kernels.token_step import launch

    kept, launch.BEGINS_EARLY = launch.BEGINS_EARLY, True
    try:
        yield
    finally:
        launch.BEGINS_EARLY = kept


def sdpa_at(position: int) -> Callable[..., Tensor]:
    """torch's own attention over the keys that are there where every row stands at one position."""

    def attend(
        query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor
    ) -> Tensor:
        keys[:, position], values[:, position] = key, value
        seen, theirs = (ring[:, None, : position + 1] for ring in (keys, values))
        return torch.nn.functional.scaled_dot_product_attention(query[:, :, None], seen, theirs, enable_gqa=True)[
            :, :, 0
        ]

    return attend


def causal_sdpa(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    """Attention of one document a row from its beginning, by torch's own kernel; arguments as of `attention`."""
    query, key, value = query.transpose(1, 2), key[:, None], value[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2)


def shortened(config: ModelConfig, num_layers: int) -> ModelConfig:
    """The same model with its first layers only."""
    return dataclasses.replace(config, num_layers=num_layers)
