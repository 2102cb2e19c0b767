"""The blocks of the model as graph operators; `model/blocks.py` and `model/layers.py` are the same in torch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from griffinlm.config import RG_LRU_EXPONENT, ModelConfig
from griffinlm.edge.graph import Graph
from griffinlm.edge.layout import Layout, Visibility
from griffinlm.edge.linear import Linears

INT8_LEVELS = 127
END = np.iinfo(np.int64).max


class BlockGraph(NamedTuple):
    """What the blocks of one graph are made with."""

    graph: Graph
    config: ModelConfig
    linears: Linears
    layout: Layout
    rows_tokens: str
    """The shape [B, T, -1]."""
    window_dtype: str
    scan: Callable[[str, str, str], tuple[str, str]]
    """All h_t [M, L] and the last [B, L] of decays and inputs [M, L] and the h before [B, L]; as `scan.add_scan`."""


class Recurrence(NamedTuple):
    """What a recurrent block makes of a chunk."""

    out: str
    """[M, D]."""
    inputs: str
    """Those of the convolution, [B, T, L]."""
    hidden: str
    """h after every token, [M, L]."""
    last_hidden: str
    """[B, L]."""
    tail: str
    """The last K-1 inputs of the convolution, [B, K-1, L]."""


class Ring(NamedTuple):
    """One of the two rings of an attention block, as the graph's inputs."""

    values: str
    """[B, S, H] in the window's type."""
    scales: str | None
    """[B, S], where the window's type is int8."""


class NewRows(NamedTuple):
    """What the host writes into a ring."""

    values: str
    """[B, T, H] in the window's type."""
    scales: str | None
    """[B, T], where the window's type is int8."""
    seen: str
    """The same as float32, after rounding: what this chunk's own tokens see."""


def norm(block: BlockGraph, x: str, name: str) -> str:
    """x [M, D] / sqrt(mean(x^2) + epsilon) * (1 + scale)."""
    graph = block.graph
    weight = graph.node("Add", block.linears.parameter(f"{name}.scale"), graph.constant(1.0))
    return graph.node("RMSNormalization", x, weight, axis=-1, epsilon=block.config.norm_epsilon)


def gelu(graph: Graph, x: str) -> str:
    """x times the normal distribution function of x, by its tanh approximation."""
    return graph.node("Gelu", x, approximate="tanh")


def mlp(block: BlockGraph, x: str, name: str) -> str:
    """down(gelu(gate(x)) * up(x)), [M, D]."""
    bias, linear = block.config.use_bias, block.linears.linear
    gate = gelu(block.graph, linear(x, f"{name}.gate", bias=bias))
    return linear(block.graph.node("Mul", gate, linear(x, f"{name}.up", bias=bias)), f"{name}.down", bias=bias)


def join(block: BlockGraph, x: str, mixed: str, name: str) -> str:
    """What a layer gives of x [M, D] where its temporal block gave `mixed`: r = x + mixed; r + mlp(norm(r))."""
    x = block.graph.node("Add", x, mixed)
    return block.graph.node("Add", x, mlp(block, norm(block, x, f"{name}.mlp_norm"), f"{name}.mlp"))


def recurrent(block: BlockGraph, x: str, name: str, hidden: str, tail: str) -> Recurrence:
    """linear_out(gelu(linear_y(x)) * rg_lru(conv(linear_x(x)))) of x [M, D].

    Args:
        hidden: [B, L]. tail: [B, K-1, L].
    """
    graph, linears = block.graph, block.linears
    branch = gelu(graph, linears.linear(x, f"{name}.linear_y", bias=True))
    u = graph.node("Reshape", linears.linear(x, f"{name}.linear_x", bias=True), block.rows_tokens)
    joined = graph.node("Concat", tail, u, axis=1)
    if block.layout.is_single:
        bounds = (graph.integers([bound]) for bound in (1, END, 1))
        tail = graph.node("Slice", joined, *bounds)
    else:
        tail = graph.node("GatherND", joined, block.layout.tail_index, batch_dims=1)
    h, last = rg_lru(block, short_conv(block, joined, f"{name}.conv"), f"{name}.rg_lru", hidden)
    out = linears.linear(graph.node("Mul", h, branch), f"{name}.linear_out", bias=True)
    return Recurrence(out, u, h, last, tail)


def short_conv(block: BlockGraph, joined: str, name: str) -> str:
    """bias + sum over s < K of weight[K-1-s] x[t-s] of tail and chunk joined [B, K-1+T, L]; gives [M, L]."""
    assert block.config.recurrent is not None
    graph, is_single = block.graph, block.layout.is_single
    num_past, width = block.config.recurrent.num_conv_taps - 1, block.config.recurrent.width

    def tap(s: int) -> str:
        place = num_past - s
        weight = block.linears.derived(f"{name}.weight", f".{place}", lambda taps: taps[place])
        if is_single:
            return graph.node("Mul", graph.node("Gather", joined, graph.integers(place), axis=1), weight)
        bounds = graph.integers([place]), graph.integers([END if s == 0 else -s])
        return graph.node("Mul", graph.node("Slice", joined, *bounds, graph.integers([1])), weight)

    out = graph.node("Add", tap(0), block.linears.parameter(f"{name}.bias"))
    for s, mask in enumerate(block.layout.tap_masks, start=1):
        out = graph.node("Add", out, graph.node("Mul", tap(s), mask))
    return out if is_single else graph.node("Reshape", out, graph.integers([-1, width]))


def rg_lru(block: BlockGraph, x: str, name: str, hidden: str) -> tuple[str, str]:
    """h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t with log a_t = -c r_t softplus(a_param), of x [M, L].

    1 - a^2 is -tanh(log a) (1 + a^2), which keeps its digits where a is next to 1.
    """
    graph, layout = block.graph, block.layout
    assert block.config.recurrent is not None
    num_blocks = block.config.recurrent.num_gate_blocks
    parts = graph.nodes("Split", x, count=num_blocks, num_outputs=num_blocks, axis=1) if num_blocks > 1 else (x,)
    input_gate = graph.node("Sigmoid", block.linears.block_diagonal(x, f"{name}.input_gate", parts))
    recurrence_gate = block.linears.block_diagonal(x, f"{name}.recurrence_gate", parts)
    rate = block.linears.derived(f"{name}.a_param", ".rate", _rate)
    # Not by Sigmoid: ONNX Runtime's loses all digits of a small one, and 1 - a^2 is proportional to it.
    inverse = graph.node("Add", graph.node("Exp", graph.node("Neg", recurrence_gate)), graph.constant(1.0))
    log_a = graph.node("Div", rate, inverse)
    a = graph.node("Exp", log_a)
    square = graph.node("Sub", graph.constant(-1.0), graph.node("Mul", a, a))
    scale = graph.node("Sqrt", graph.node("Mul", graph.node("Tanh", log_a), square))
    a = graph.node("Where", layout.is_special, layout.special_decay, a)
    scale = graph.node("Where", layout.is_special, layout.special_scale, scale)
    inputs = graph.node("Mul", graph.node("Mul", scale, input_gate), x)
    return block.scan(a, inputs, hidden)


def _rate(a_param: np.ndarray) -> np.ndarray:
    """-c softplus(a_param)."""
    return (-RG_LRU_EXPONENT * np.logaddexp(0.0, a_param.astype(np.float64))).astype(np.float32)


def attention(
    block: BlockGraph,
    x: str,
    name: str,
    keys: Ring,
    values: Ring,
    visibility: Visibility,
    earlier: tuple[str, str] | None = None,
) -> tuple[str, NewRows, NewRows]:
    """softmax(q k / sqrt(H)) v over the ring and the chunk; all heads share one key and value. x is [M, D].

    Args:
        earlier: keys and values [B, t, H] of tokens of the chunk that stand before those of x, as they are seen.

    Returns:
        The block's output [M, D], and the new rows of the two rings.
    """
    config, rotation = block.config.attention, block.layout.rotation
    assert config is not None
    assert rotation is not None
    graph, linear = block.graph, block.linears.linear
    num_heads, size = config.num_heads, config.head_size
    heads = _shape(block, [num_heads, size])
    query = graph.node("Reshape", linear(x, f"{name}.query", bias=False), heads)
    query = rotate(block, query, rotation.query_cos, rotation.query_sin)
    key = graph.node("Reshape", linear(x, f"{name}.key", bias=False), _shape(block, [1, size]))
    key = graph.node("Reshape", rotate(block, key, rotation.cos, rotation.sin), block.rows_tokens)
    value = graph.node("Reshape", linear(x, f"{name}.value", bias=False), block.rows_tokens)
    new_keys, new_values = round_rows(block, key), round_rows(block, value)
    seen_keys, seen_values = new_keys.seen, new_values.seen
    if earlier is not None:
        seen_keys = graph.node("Concat", earlier[0], seen_keys, axis=1)
        seen_values = graph.node("Concat", earlier[1], seen_values, axis=1)
    # Queries of all tokens and heads are the rows of one product: [B, T * N, H].
    query = graph.node("Reshape", query, graph.integers([0, -1, size]))
    scores = [
        graph.node("MatMul", query, graph.node("Transpose", seen, perm=[0, 2, 1]))
        for seen in (read_ring(block, keys), seen_keys)
    ]
    joined = graph.node("Concat", *scores, axis=2)
    flat = graph.node("Shape", joined)
    by_token = graph.node("Concat", _rows_and_tokens(block), graph.integers([num_heads, -1]), axis=0)
    joined = graph.node("Add", graph.node("Reshape", joined, by_token), visibility.bias)
    weights = graph.node("Reshape", graph.node("Softmax", joined, axis=-1), flat)
    axis, zero = graph.integers([2]), graph.integers([0])
    of_ring = graph.node("Slice", weights, zero, visibility.num_slots, axis)
    of_chunk = graph.node("Slice", weights, visibility.num_slots, graph.integers([END]), axis)
    out = graph.node(
        "Add",
        graph.node("MatMul", of_ring, read_ring(block, values)),
        graph.node("MatMul", of_chunk, seen_values),
    )
    out = graph.node("Reshape", out, graph.integers([-1, num_heads * size]))
    return linear(out, f"{name}.output", bias=block.config.use_bias), new_keys, new_values


def rotate(block: BlockGraph, x: str, cos: str, sin: str) -> str:
    """RoPE on the first channels of each head of x [B, T, N, H]: channel i is paired with i + rotated_size / 2."""
    assert block.config.attention is not None
    graph, size = block.graph, block.config.attention.head_size
    half = block.config.attention.rotated_size // 2
    if half == 0:
        return graph.node("Mul", x, cos)
    sizes = [half, half, size - 2 * half] if size > 2 * half else [half, half]
    first, second, *rest = graph.nodes("Split", x, graph.integers(sizes), count=len(sizes), axis=3)
    swapped = graph.node("Concat", second, first, *rest, axis=3)
    return graph.node("Add", graph.node("Mul", x, cos), graph.node("Mul", swapped, sin))


def round_rows(block: BlockGraph, rows: str) -> NewRows:
    """rows [B, T, H] as the ring will hold them, and as they are seen: a chunk must equal its tokens one by one."""
    graph = block.graph
    if block.window_dtype == "float32":
        return NewRows(rows, None, rows)
    if block.window_dtype == "float16":
        narrow = graph.node("Cast", rows, to=TensorProto.FLOAT16)
        return NewRows(narrow, None, graph.node("Cast", narrow, to=TensorProto.FLOAT))
    largest = graph.node("ReduceMax", graph.node("Abs", rows), graph.integers([2]), keepdims=1)
    scale = graph.node("Mul", largest, graph.constant(1.0 / INT8_LEVELS))
    scale = graph.node("Max", scale, graph.constant(np.finfo(np.float32).tiny))
    whole = graph.node("Round", graph.node("Div", rows, scale))
    return NewRows(
        graph.node("Cast", whole, to=TensorProto.INT8),
        graph.node("Squeeze", scale, graph.integers([2])),
        graph.node("Mul", whole, scale),
    )


def read_ring(block: BlockGraph, ring: Ring) -> str:
    """The ring [B, S, H] as float32."""
    if block.window_dtype == "float32":
        return ring.values
    graph = block.graph
    values = graph.node("Cast", ring.values, to=TensorProto.FLOAT)
    if ring.scales is None:
        return values
    return graph.node("Mul", values, graph.node("Unsqueeze", ring.scales, graph.integers([2])))


def _rows_and_tokens(block: BlockGraph) -> str:
    return block.graph.node("Shape", block.layout.positions)


def _shape(block: BlockGraph, rest: list[int]) -> str:
    """The shape [B, T, *rest]."""
    return block.graph.node("Concat", _rows_and_tokens(block), block.graph.integers(rest), axis=0)
