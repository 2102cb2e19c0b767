"""The graph that reads ahead: the first layers guess token by token, and the others read all of it in one go."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from onnx import TensorProto

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import EMBEDDING, ModelConfig, Step
from griffinlm.edge.blocks import BlockGraph, NewRows, Ring, attention, join, norm, recurrent
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.layout import (
    RingAges,
    add_layout,
    add_single_layout,
    ring_ages,
    visibility_from,
)
from griffinlm.edge.linear import Linears
from griffinlm.edge.model import head_logits, ring_inputs, state_inputs
from griffinlm.edge.scan import GROUP_TOKENS, add_short_scan, add_step
from griffinlm.state import row_layout

MAX_GUESSES = GROUP_TOKENS - 1
AHEAD = ".ahead"
"""Ends the name of an output: what every token read would bring into a state array, [rows, tokens, ...]."""


class _Given(NamedTuple):
    """What both parts of the graph stand on."""

    graph: Graph
    checkpoint: Checkpoint
    activation_levels: int
    window_dtype: str
    num_before: Sequence[str]
    """[B], tokens that each loop has read of the row's document."""
    ages: dict[tuple[str, int], RingAges]
    """By kind of attention and loop."""
    rings: dict[str, tuple[Ring, Ring]]
    """By step, keys and values."""


def build_ahead_graph(
    checkpoint: Checkpoint, window_dtype: str, activation_levels: int, num_first_layers: int
) -> BuiltGraph:
    """One graph that guesses and reads, for any number of rows.

    The first layers read the tokens given; behind each, the head's best token is what they read next, as long as it is
    at least as probable as asked for in some row. All other layers then read all of these tokens at once.

    Inputs: `token_ids` [rows], `num_before` [rows], `num_tokens` [], the most to read, up to `MAX_GUESSES` + 1;
    `least_log_probability` []; and the arrays of the state by their names, rings possibly cut to the slots in use.
    In a model that skips there is `num_skipped` too, as in `model.build_graph`.
    Outputs: `read_ids` [rows, tokens], `logits` [rows, tokens, vocab], and for every state array one of its name and
    `.ahead`: h after every token, the convolution's inputs, or the rows of a ring.
    """
    graph, config = Graph(), checkpoint.config
    token_ids = graph.input("token_ids", "int64", ["rows"])
    num_before = _by_loop(graph, config, graph.input("num_before", "int64", ["rows"]))
    arrays = row_layout(config, window_dtype, "float32")
    states: dict[str, tuple[str, str]] = {}
    given = _Given(graph, checkpoint, activation_levels, window_dtype, num_before, {}, {})
    for step in config.plan():
        if step.kind == "recurrent":
            hidden, tail = state_inputs(graph, step, arrays)
            states[step.state] = hidden, tail
        else:
            rings = given.rings[step.state] = ring_inputs(graph, step, arrays)
            loop, kind = config.loop_of(step.depth), step.kind
            if (kind, loop) not in given.ages:
                assert config.attention is not None
                window = config.attention.window_of(kind)
                given.ages[kind, loop] = ring_ages(graph, num_before[loop], rings[0].values, window)
    plan = config.plan()
    x, read_ids, found = _guess(given, plan[:num_first_layers], states, token_ids)
    logits, others = _check(given, plan[num_first_layers:], states, x)
    for name, value in (found | others).items():
        spec = arrays[name]
        shape = spec.shape[1:] if name.endswith(".hidden") else spec.shape[2:]
        graph.output(name + AHEAD, value, spec.dtype.name, ["rows", "tokens", *shape])
    graph.output("logits", logits, "float32", ["rows", "tokens", config.vocab_size])
    graph.output("read_ids", read_ids, "int64", ["rows", "tokens"])
    return graph.build("ahead")


def _by_loop(graph: Graph, config: ModelConfig, num_before: str) -> list[str]:
    num_loops = config.num_loops
    if not config.skips:
        return [num_before] * num_loops
    skipped = graph.input("num_skipped", "int64", ["rows", num_loops - 1])
    columns = [graph.node("Gather", skipped, graph.integers(loop), axis=1) for loop in range(num_loops - 1)]
    return [num_before, *(graph.node("Sub", num_before, column) for column in columns)]


def _guess(
    given: _Given, plan: Sequence[Step], states: dict[str, tuple[str, str]], token_ids: str
) -> tuple[str, str, dict[str, str]]:
    """The first layers, which belong to the first loop, token by token.

    Returns:
        what comes out of them [B, T, D], the tokens read [B, T], and what the state arrays would get.
    """
    graph, config = given.graph, given.checkpoint.config
    most = graph.input("num_tokens", "int64", [])
    least = graph.input("least_log_probability", "float32", [])
    body = graph.branch(given.checkpoint.quantization is not None)
    linears = Linears(body, given.checkpoint, given.activation_levels)
    place, condition, ids = (body.new_name(name) for name in ("place", "condition", "ids"))
    places = body.node("Reshape", place, body.integers([1, 1]))
    positions = body.node("Add", body.node("Unsqueeze", given.num_before[0], body.integers([1])), places)
    layout = add_single_layout(body, config, positions)
    rows_tokens = body.node("Concat", body.node("Shape", positions), body.integers([-1]), axis=0)
    block = BlockGraph(body, config, linears, layout, rows_tokens, given.window_dtype, partial(add_step, body))
    num_read = body.node("Add", place, body.integers(1))
    tokens = body.node("Range", body.integers(0), num_read, body.integers(1))
    seen = {
        kind: visibility_from(body, positions, ages, places, tokens)
        for (kind, loop), ages in given.ages.items()
        if loop == 0
    }
    carried, before, after = [], [], []
    kept: dict[str, str] = {}
    x = body.node("Mul", linears.rows(ids, EMBEDDING), body.constant(config.embedding_scale))
    for step in plan:
        y, name = norm(block, x, f"{step.weights}.temporal_norm"), step.state
        own = body.new_name("carried"), body.new_name("carried")
        before += own
        if step.kind == "recurrent":
            carried += states[name]
            found = recurrent(block, y, f"{step.weights}.recurrent", *own)
            y = found.out
            after += [found.last_hidden, found.tail]
            kept |= {f"{name}.hidden": found.hidden, f"{name}.convolution": _of_one_token(body, found.inputs)}
        else:
            carried += [_no_rows(graph, given.rings[name][0])] * 2
            y, *new = attention(block, y, f"{step.weights}.attention", *given.rings[name], seen[step.kind], own)
            after += [body.node("Concat", old, rows.seen, axis=1) for old, rows in zip(own, new, strict=True)]
            kept |= {key: _of_one_token(body, value) for key, value in _named_rows(name, new).items()}
        x = join(block, x, y, step.weights)
    next_ids, goes_on = _next(given, block, x, ids, num_read, most, least)
    outputs = [goes_on, next_ids, *after, *(body.node("Identity", value) for value in (x, ids, *kept.values()))]
    stacked = graph.loop(most, body, [place, condition, ids, *before], outputs, [token_ids, *carried])[-2 - len(kept) :]
    # Tokens of a row lie behind each other from here on.
    is_flat = [False, True, *(name.endswith("_scales") for name in kept)]
    by_row = [
        graph.node("Transpose", value, perm=[1, 0] if flat else [1, 0, 2])
        for value, flat in zip(stacked, is_flat, strict=True)
    ]
    return by_row[0], by_row[1], dict(zip(kept, by_row[2:], strict=True))


def _next(given: _Given, block: BlockGraph, x: str, ids: str, num_read: str, most: str, least: str) -> tuple[str, str]:
    """The best next tokens [B] of x [B, D], and whether they are to be read."""
    head, end = (block.graph.branch(given.checkpoint.quantization is not None) for _ in range(2))
    there = block._replace(graph=head, linears=Linears(head, given.checkpoint, given.activation_levels))
    # Before the cap, which changes no order.
    logits = there.linears.product(norm(there, x, "final_norm"), EMBEDDING)
    axis = head.integers([1])
    best = head.node("ReduceMax", logits, axis, keepdims=0)
    log_probability = head.node("Sub", best, head.node("ReduceLogSumExp", logits, axis, keepdims=0))
    surest = head.node("ReduceMax", log_probability, keepdims=0)
    then = [head.node("ArgMax", logits, axis=1, keepdims=0), head.node("GreaterOrEqual", surest, least)]
    otherwise = [end.node("Identity", ids), end.node("Identity", end.constant(False, np.bool_))]
    has_room = block.graph.node("Less", num_read, most)
    next_ids, goes_on = block.graph.choose(has_room, (head, then), (end, otherwise))
    return next_ids, goes_on


def _check(
    given: _Given, plan: Sequence[Step], states: dict[str, tuple[str, str]], x: str
) -> tuple[str, dict[str, str]]:
    """The other layers over all tokens x [B, T, D]; the logits [B, T, V], and what the state arrays would get."""
    graph, config = given.graph, given.checkpoint.config
    linears = Linears(graph, given.checkpoint, given.activation_levels)
    num_tokens = graph.node("Squeeze", graph.node("Shape", x, start=1, end=2))
    tokens = graph.node("Range", graph.integers(0), num_tokens, graph.integers(1))
    column = graph.integers([1])
    positions = {
        before: graph.node("Add", graph.node("Unsqueeze", before, column), tokens) for before in given.num_before
    }
    layouts = {before: add_layout(graph, config, own) for before, own in positions.items()}
    rows_tokens = graph.node(
        "Concat", *(graph.node("Shape", positions[given.num_before[0]]), graph.integers([-1])), axis=0
    )
    scan = partial(add_short_scan, graph, rows_tokens=rows_tokens)
    first = layouts[given.num_before[0]]
    of_call = BlockGraph(graph, config, linears, first, rows_tokens, given.window_dtype, scan)
    here = graph.node("Unsqueeze", tokens, column)
    seen = {
        key: visibility_from(graph, positions[given.num_before[key[1]]], ages, here, tokens)
        for key, ages in given.ages.items()
    }
    kept: dict[str, str] = {}
    block, x = of_call, graph.node("Reshape", x, graph.integers([-1, config.width]))
    for step in plan:
        loop = config.loop_of(step.depth)
        block = of_call._replace(layout=layouts[given.num_before[loop]])
        y, name = norm(block, x, f"{step.weights}.temporal_norm"), step.state
        if step.kind == "recurrent":
            found = recurrent(block, y, f"{step.weights}.recurrent", *states[name])
            y, hidden = found.out, graph.node("Reshape", found.hidden, rows_tokens)
            kept |= {f"{name}.hidden": hidden, f"{name}.convolution": found.inputs}
        else:
            y, *new = attention(block, y, f"{step.weights}.attention", *given.rings[name], seen[step.kind, loop])
            kept |= _named_rows(name, new)
        x = join(block, x, y, step.weights)
    logits = head_logits(graph, linears, config, norm(block, x, "final_norm"))
    return graph.node("Reshape", logits, rows_tokens), kept


def _named_rows(name: str, new: Sequence[NewRows]) -> dict[str, str]:
    """The new rows of keys and values by the names of their state arrays."""
    named = {}
    for part, rows in zip(("key", "value"), new, strict=True):
        named[f"{name}.{part}s"] = rows.values
        if rows.scales is not None:
            named[f"{name}.{part}_scales"] = rows.scales
    return named


def _of_one_token(graph: Graph, value: str) -> str:
    """[B, ...] of [B, 1, ...]."""
    return graph.node("Squeeze", value, graph.integers([1]))


def _no_rows(graph: Graph, ring: Ring) -> str:
    """[B, 0, H] float32."""
    bounds = (graph.integers([bound]) for bound in (0, 0, 1))
    return graph.node("Cast", graph.node("Slice", ring.values, *bounds), to=TensorProto.FLOAT)
