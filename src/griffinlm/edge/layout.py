"""Values that every block of a call reads: where the tokens stand, what they may see, how heads are rotated."""

from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from griffinlm.config import AttentionConfig, ModelConfig
from griffinlm.edge.graph import Graph
from griffinlm.state import MAX_CAPACITY_TOKENS

INVISIBLE = -3.0e38
"""Added to the score of a token that must not be seen; finite, so that no difference of two is NaN."""


class Rotation(NamedTuple):
    """Factors [B, T, 1, H] of RoPE: x * cos + swapped(x) * sin, the channels past the rotated ones left as they are."""

    cos: str
    sin: str
    query_cos: str
    """The same, times 1 / sqrt(H), which scales the scores."""
    query_sin: str


class Layout(NamedTuple):
    """Names of the shared values of a graph. B rows, T tokens, M = B * T, K taps, S slots of the ring."""

    positions: str
    """[B, T] int64, place in the document; -1 for padding, which stands only at the end of a row."""
    is_step: str
    """Whether T is 1."""
    tap_masks: tuple[str, ...]
    """For s = 1 to K-1: [B, T, 1], 1 where the token s places before belongs to the document, else 0; [B, 1] where
    every row has one token."""
    tail_index: str
    """[B, K-1, 1], where the last K-1 real inputs of the convolution stand in tail and chunk joined."""
    is_special: str
    """[M, 1], whether the recurrence ignores its decay: at a document's start and in padding."""
    special_decay: str
    """[M, 1], the decay there: 0 at a start, 1 in padding."""
    special_scale: str
    """[M, 1], the factor on the input there: 1 at a start, 0 in padding."""
    rotation: Rotation | None
    is_single: bool = False
    """Whether every call has one token a row, which is none of padding."""


def add_layout(graph: Graph, config: ModelConfig, positions: str) -> Layout:
    """Adds what follows from the positions [B, T] alone."""
    zero = graph.integers(0)
    is_real = graph.node("GreaterOrEqual", positions, zero)
    is_start = graph.node("Equal", positions, zero)
    last_axis = graph.integers([-1])
    column = graph.integers([-1, 1])
    tap_masks = tuple(graph.node("Unsqueeze", seen, last_axis) for seen in _seen_by_tap(graph, config, positions))
    tail_index = ""
    if config.recurrent is not None:
        num_past = config.recurrent.num_conv_taps - 1
        is_one = graph.node("Cast", is_real, to=TensorProto.INT64)
        lengths = graph.node("ReduceSum", is_one, graph.integers([1]), keepdims=1)
        tail_index = graph.node("Add", lengths, graph.integers(np.arange(num_past)[None]))
        tail_index = graph.node("Unsqueeze", tail_index, last_axis)
    is_padding = graph.node("Reshape", graph.node("Not", is_real), column)
    starts = graph.node("Reshape", is_start, column)
    num_tokens = graph.node("Gather", graph.node("Shape", positions), graph.integers(1))
    return Layout(
        positions=positions,
        is_step=graph.node("Equal", num_tokens, graph.integers(1)),
        tap_masks=tap_masks,
        tail_index=tail_index,
        is_special=graph.node("Or", starts, is_padding),
        special_decay=_as_float(graph, is_padding),
        special_scale=_as_float(graph, starts),
        rotation=None if config.attention is None else _rotation(graph, positions, config.attention),
    )


def loop_positions(graph: Graph, config: ModelConfig, positions: str, num_before: str) -> list[tuple[str, str]]:
    """Positions [B, T] and tokens read before [B] as each loop sees them.

    A model that skips has an input `num_skipped` [B, loops - 1] for that: until a document starts, a loop stands closer
    to the start of the present one by the tokens that it has not read.
    """
    num_loops = config.num_loops
    if not config.skips:
        return [(positions, num_before)] * num_loops
    zero, column = graph.integers(0), graph.integers([1])
    starts = graph.node("Cast", graph.node("Equal", positions, zero), to=TensorProto.INT64)
    goes_on = graph.node("Equal", graph.node("CumSum", starts, graph.integers(1)), zero)
    goes_on = graph.node("And", goes_on, graph.node("GreaterOrEqual", positions, zero))
    goes_on = graph.node("Cast", goes_on, to=TensorProto.INT64)
    num_skipped, found = graph.input("num_skipped", "int64", ["rows", num_loops - 1]), [(positions, num_before)]
    for loop in range(num_loops - 1):
        skipped = graph.node("Gather", num_skipped, graph.integers(loop), axis=1)  # [B]
        back = graph.node("Mul", graph.node("Unsqueeze", skipped, column), goes_on)
        found.append((graph.node("Sub", positions, back), graph.node("Sub", num_before, skipped)))
    return found


def add_single_layout(graph: Graph, config: ModelConfig, positions: str) -> Layout:
    """The same for calls of one token a row, positions [B, 1], with fewer nodes."""
    return Layout(
        positions=positions,
        is_step="",
        tap_masks=tuple(_seen_by_tap(graph, config, positions)),
        tail_index="",
        is_special=graph.node("Equal", positions, graph.integers(0)),
        special_decay=graph.constant(0.0),
        special_scale=graph.constant(1.0),
        rotation=None if config.attention is None else _rotation(graph, positions, config.attention),
        is_single=True,
    )


def _seen_by_tap(graph: Graph, config: ModelConfig, positions: str) -> list[str]:
    """For s = 1 to K-1: [B, T], 1 where the token s places before belongs to the document, else 0."""
    taps = range(1, 1 if config.recurrent is None else config.recurrent.num_conv_taps)
    return [_as_float(graph, _at_least(graph, positions, s)) for s in taps]


def _at_least(graph: Graph, positions: str, least: int) -> str:
    return graph.node("GreaterOrEqual", positions, graph.integers(least))


def _as_float(graph: Graph, value: str) -> str:
    return graph.node("Cast", value, to=TensorProto.FLOAT)


def _rotation(graph: Graph, positions: str, config: AttentionConfig) -> Rotation:
    """cos and sin of position * wavelength^(-2i / rotated_size), as `model.layers.rotation` computes them."""
    half = config.rotated_size // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(max(half, 1))
    frequency = np.float32(config.rope_wavelength) ** -exponent
    places = graph.node("Unsqueeze", _as_float(graph, positions), graph.integers([2, 3]))
    angle = graph.node("Mul", places, graph.constant(frequency[None, None, None]))
    cos, sin = graph.node("Cos", angle), graph.node("Sin", angle)
    num_rest = config.head_size - 2 * half
    # The rest of the head: times 1, plus nothing. Its factors follow from the positions' shape.
    kept = graph.node("Mul", places, graph.constant(np.zeros((1, 1, 1, num_rest), np.float32)))
    cos = graph.node("Concat", cos, cos, graph.node("Add", kept, graph.constant(1.0)), axis=3)
    sin = graph.node("Concat", graph.node("Neg", sin), sin, kept, axis=3)
    scale = graph.constant(1.0 / np.sqrt(config.head_size))
    return Rotation(cos, sin, graph.node("Mul", cos, scale), graph.node("Mul", sin, scale))


class Visibility(NamedTuple):
    """What is added to attention's scores: 0 where a token is seen, `INVISIBLE` where not."""

    bias: str
    """[B, T, 1, S + T], for the slots of the ring and then the tokens of the chunk."""
    num_slots: str
    """[1] int64, S."""


class RingAges(NamedTuple):
    """How long ago the tokens of a ring were read."""

    age: str
    """[B, 1, S], places between each slot's token and the first of the chunk; 1 is the newest."""
    num_slots: str
    """[1] int64, S."""
    window_tokens: int | None


def add_visibility(graph: Graph, positions: str, num_before: str, ring: str, window_tokens: int | None) -> Visibility:
    """Token t sees the token d places before it where d <= min(position of t, window).

    A slot of the ring holds the newest token before the chunk whose position is its number modulo the window. The ring
    may be given cut to its first slots where no row has read more than these; a global ring's slots are never used
    twice, which is the same rule with a modulus that no position reaches.

    Args:
        positions: [B, T].
        num_before: [B], tokens of each row's document read before the chunk. ring: [B, S, H].
    """
    zero, one = graph.integers(0), graph.integers(1)
    num_tokens = graph.node("Shape", positions, start=1, end=2)
    tokens = graph.node("Range", zero, graph.node("Squeeze", num_tokens), one)
    here = graph.node("Unsqueeze", tokens, graph.integers([1]))  # [T, 1]
    return visibility_from(graph, positions, ring_ages(graph, num_before, ring, window_tokens), here, tokens)


def ring_ages(graph: Graph, num_before: str, ring: str, window_tokens: int | None) -> RingAges:
    """How old what a ring holds is; arguments as for `add_visibility`."""
    modulus = MAX_CAPACITY_TOKENS if window_tokens is None else window_tokens
    zero, one = graph.integers(0), graph.integers(1)
    num_slots = graph.node("Shape", ring, start=1, end=2)
    slots = graph.node("Range", zero, graph.node("Squeeze", num_slots), one)
    newest = graph.node("Sub", graph.node("Unsqueeze", num_before, graph.integers([1])), one)
    age = graph.node("Mod", graph.node("Sub", newest, slots), graph.integers(modulus))
    age = graph.node("Unsqueeze", graph.node("Add", age, one), graph.integers([1]))
    return RingAges(age, num_slots, window_tokens)


def visibility_from(graph: Graph, positions: str, ages: RingAges, here: str, tokens: str) -> Visibility:
    """What some tokens of a chunk see of the ring and of the chunk.

    Args:
        positions: [B, T], of those that look. here: [T, 1], their places in the chunk.
        tokens: [C], the places of those that may be seen.
    """
    age, window_tokens = ages.age, ages.window_tokens
    zero = graph.integers(0)
    reach = graph.node("Max", positions, zero)
    if window_tokens is not None:
        reach = graph.node("Min", reach, graph.integers(window_tokens))
    reach = graph.node("Unsqueeze", reach, graph.integers([2]))  # [B, T, 1]
    from_ring = graph.node("LessOrEqual", graph.node("Add", age, here), reach)  # [B, T, S]
    distance = graph.node("Sub", here, tokens)  # [T, C]
    seen = graph.node("LessOrEqual", distance, reach)  # [B, T, C]
    seen = graph.node("And", seen, graph.node("GreaterOrEqual", distance, zero))
    visible = graph.node("Concat", from_ring, seen, axis=2)
    bias = graph.node("Where", visible, graph.constant(0.0), graph.constant(INVISIBLE))
    return Visibility(graph.node("Unsqueeze", bias, graph.integers([2])), ages.num_slots)
