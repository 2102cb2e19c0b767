"""How the kernels of a decoder's step are launched: which tile fits how many rows and outputs.

Every function computes what `reference` has under its name; tensors are contiguous and of one floating type, but for h
and frequencies, which are float32.
"""

# Triton compiles what pyright reads as Python.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportReturnType=false, reportAttributeAccessIssue=false

from typing import NamedTuple

import torch
from torch import Tensor

from griffinlm.kernels.device import next_power_of_two, num_processors
from griffinlm.kernels.token_step import triton as kernels
from griffinlm.kernels.token_step.reference import Linear, Norm

MOST_ROWS = 64
"""Of a tile."""
FEWEST_ROWS_OF_A_PRODUCT = 16
"""Tensor cores take no fewer."""
TILE_BYTES = 96 * 1024
"""Of all tiles on their way to a program: two programs fit on a processor."""
BEGINS_EARLY = False
"""Whether each kernel begins while the one before ends, which GPUs of compute capability 9.0 can do."""


class Tile(NamedTuple):
    """What a program has at a time. All but the last are powers of two."""

    num_rows: int
    """1 is multiplied number by number."""
    num_outputs: int
    num_inputs: int
    num_warps: int
    num_stages: int
    """Tiles of inputs that are on their way at a time."""


def choose_tile(num_rows: int, dtype: torch.dtype, width: int, num_outputs: int, num_processors: int) -> Tile:
    """For products of rows with one matrix or two, each of so many inputs and outputs; several rows in 16 bits.

    Rows of float32 have no tensor cores: they are right, but spill registers.

    Outputs of a program are few, so that all processors have programs; more where there are many times as many.
    """
    if num_rows == 1:
        outputs = 4
        while outputs < 16 and num_outputs > 16 * outputs * num_processors:
            outputs *= 2
        # 16 bytes of every output a thread.
        inputs = 1024 // dtype.itemsize
        return Tile(1, outputs, min(inputs, next_power_of_two(width)), num_warps=2, num_stages=3)
    outputs, rows = 16, max(FEWEST_ROWS_OF_A_PRODUCT, next_power_of_two(num_rows))
    while outputs < (64 if rows <= 32 else 32) and num_outputs > 4 * outputs * num_processors:
        outputs *= 2
    inputs = (512 if rows <= 32 else 256) // dtype.itemsize
    inputs = min(inputs, max(16, next_power_of_two(width)))
    stages = TILE_BYTES // ((rows + 2 * outputs) * inputs * dtype.itemsize)
    # A warp of tensor cores has 16 rows and 8 outputs.
    num_warps = min(rows * outputs // 128, 4 if rows <= 32 else 8)
    return Tile(rows, outputs, inputs, num_warps, num_stages=min(max(stages, 2), 5))


def choose_gate_tile(num_rows: int, width: int) -> Tile:
    """For the products of rows with a block of both gates, whose outputs lie together in memory: 32 bytes at a time."""
    if num_rows == 1:
        return Tile(1, 16, min(256, next_power_of_two(width)), num_warps=4, num_stages=1)
    rows = max(FEWEST_ROWS_OF_A_PRODUCT, next_power_of_two(num_rows))
    inputs = min(64, max(16, next_power_of_two(width)))
    return Tile(rows, 16, inputs, num_warps=min(rows // 8, 8), num_stages=3)


def constants(tile: Tile, width: int) -> dict[str, int]:
    """What the kernels are compiled for."""
    early = {"launch_pdl": True} if BEGINS_EARLY else {}
    return {
        **early,
        "WIDTH": width,
        "ROWS": tile.num_rows,
        "OUTPUTS": tile.num_outputs,
        "INPUTS": tile.num_inputs,
        "STAGES": tile.num_stages,
        "EARLY": BEGINS_EARLY,
        "num_warps": tile.num_warps,
    }


def linear(
    x: Tensor,
    layer: Linear,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    soft_cap: float | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`reference.linear`."""
    num_outputs, width = layer.weight.shape
    tile = _tile(x, num_outputs, layer)
    out = x.new_empty(len(x), num_outputs, dtype=dtype or x.dtype)
    scale, epsilon = norm or (None, 0.0)
    sizes = (len(x), num_outputs, epsilon, soft_cap or 0.0, soft_cap is not None)
    with torch.cuda.device_of(x):
        kernels.linear_kernel[(_parts(num_outputs, tile),)](
            x, scale, *layer, residual, out, *sizes, **constants(tile, width)
        )
    return out


def gated_hidden(x: Tensor, norm: Norm, gate: Linear, up: Linear) -> Tensor:
    """`reference.gated_hidden`."""
    num_outputs, width = gate.weight.shape
    tile = _tile(x, num_outputs, gate, up)
    out = x.new_empty(len(x), num_outputs)
    with torch.cuda.device_of(x):
        kernels.gated_hidden_kernel[(_parts(num_outputs, tile),)](
            x, norm.scale, *gate, *up, out, len(x), num_outputs, norm.epsilon, **constants(tile, width)
        )
    return out


def recurrent_inputs(
    x: Tensor,
    norm: Norm,
    into: Linear,
    gate: Linear,
    taps: Linear,
    tails: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """`reference.recurrent_inputs`."""
    num_outputs, width = into.weight.shape
    tile = _tile(x, num_outputs, into, gate)
    u, gates = x.new_empty(len(x), num_outputs), x.new_empty(len(x), num_outputs)
    inputs = (x, norm.scale, *into, *gate, *taps, tails, slots, positions)
    sizes = (len(x), num_outputs, norm.epsilon, len(taps.weight))
    with torch.cuda.device_of(x):
        kernels.recurrent_inputs_kernel[(_parts(num_outputs, tile),)](
            *inputs, u, gates, *sizes, **constants(tile, width)
        )
    return u, gates


def recurrent_outputs(
    u: Tensor,
    gate: Tensor,
    input_gate: Linear,
    recurrence_gate: Linear,
    a_param: Tensor,
    hidden: Tensor,
    slots: Tensor,
    positions: Tensor,
) -> Tensor:
    """`reference.recurrent_outputs`."""
    num_blocks, width, _ = input_gate.weight.shape
    _check(u, gate, input_gate.weight, recurrence_gate.weight)
    tile = choose_gate_tile(len(u), width)
    out = torch.empty_like(u)
    inputs = (u, gate, *input_gate, *recurrence_gate, a_param, hidden, slots, positions)
    with torch.cuda.device_of(u):
        kernels.recurrent_outputs_kernel[(_parts(width, tile), num_blocks)](
            *inputs, out, len(u), num_blocks * width, **constants(tile, width)
        )
    return out


def attention_inputs(
    x: Tensor, norm: Norm, query: Linear, key: Linear, value: Linear, positions: Tensor, frequencies: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.attention_inputs`."""
    head_size, width = key.weight.shape
    num_heads = len(query.weight) // head_size
    tile = _tile(x, (num_heads + 2) * head_size // 2, query, key, value)
    queries = x.new_empty(len(x), num_heads, head_size)
    keys, values = (x.new_empty(len(x), head_size) for _ in range(2))
    weights = (layer.weight for layer in (query, key, value))
    inputs = (x, norm.scale, *weights, positions, frequencies, queries, keys, values)
    sizes = (len(x), num_heads, head_size, len(frequencies), norm.epsilon)
    with torch.cuda.device_of(x):
        kernels.attention_inputs_kernel[(_parts(-(-head_size // 2), tile), num_heads + 2)](
            *inputs, *sizes, **constants(tile, width)
        )
    return queries, keys, values


def _tile(x: Tensor, num_outputs: int, *layers: Linear) -> Tile:
    _check(x, *(layer.weight for layer in layers))
    return choose_tile(len(x), x.dtype, layers[0].weight.shape[1], num_outputs, num_processors(x.device))


def _check(x: Tensor, *others: Tensor) -> None:
    assert 0 < len(x) <= MOST_ROWS
    assert all(given.is_contiguous() for given in (x, *others))


def _parts(num_outputs: int, tile: Tile) -> int:
    return -(-num_outputs // tile.num_outputs)
