"""The graph of a model: what `ModelConfig.plan()` says, in the operators of ONNX Runtime."""

from collections.abc import Mapping

from griffinlm.checkpoint import Checkpoint
from griffinlm.checkpoint.adapter import AdapterTerms
from griffinlm.config import EMBEDDING, ModelConfig, Step
from griffinlm.edge.blocks import BlockGraph, NewRows, Ring, attention, join, norm, recurrent
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.layout import Visibility, add_layout, add_visibility, loop_positions
from griffinlm.edge.linear import Linears
from griffinlm.edge.scan import add_scan
from griffinlm.state import ArraySpec, row_layout

NEW = ".new"
"""Ends the name of an output: the state array after the chunk, or the rows that go into a ring."""


def build_graph(
    checkpoint: Checkpoint, window_dtype: str, activation_levels: int, adapters: AdapterTerms | None = None
) -> BuiltGraph:
    """One graph for prompts and single tokens, for any number of rows.

    Inputs: `embedded` [rows, tokens, D], the scaled embeddings; `positions` [rows, tokens], -1 for padding at the end
    of a row; `num_before` [rows]; `logit_index` [logits, 2], row and token of the logits wanted; and the arrays of the
    state by their names, rings possibly cut to the slots in use. Outputs: `logits` [logits, vocab], and for every state
    array one of its name and `.new`: the whole of it, or of a ring the rows [rows, tokens, ...] that the caller writes.
    With adapters there are the inputs of `low_rank.AdaptedRows` too, and in a model that skips `num_skipped`.
    """
    graph, config = Graph(), checkpoint.config
    linears = Linears(graph, checkpoint, activation_levels, adapters)
    add_model(graph, linears, config, window_dtype)
    return graph.build("griffin")


def add_model(
    graph: Graph, linears: Linears, config: ModelConfig, window_dtype: str, embedded: str | None = None
) -> None:
    """Adds everything from the inputs to the outputs; the scaled embeddings are an input unless given."""
    if embedded is None:
        embedded = graph.input("embedded", "float32", ["rows", "tokens", config.width])
    positions = graph.input("positions", "int64", ["rows", "tokens"])
    num_before = graph.input("num_before", "int64", ["rows"])
    places = loop_positions(graph, config, positions, num_before)
    layouts = {own: add_layout(graph, config, own) for own, _ in places}
    is_step = layouts[positions].is_step
    shape = graph.node("Shape", positions)
    rows_tokens = graph.node("Concat", shape, graph.integers([-1]), axis=0)

    def scan(decay: str, inputs: str, initial: str) -> tuple[str, str]:
        return add_scan(graph, decay, inputs, initial, is_step, rows_tokens)

    of_call = BlockGraph(graph, config, linears, layouts[positions], rows_tokens, window_dtype, scan)
    arrays = row_layout(config, window_dtype, "float32")
    visibilities: dict[tuple[str, str], Visibility] = {}
    block, x = of_call, graph.node("Reshape", embedded, graph.integers([-1, config.width]))
    for step in config.plan():
        own, own_before = places[config.loop_of(step.depth)]
        block = of_call._replace(layout=layouts[own])
        x = add_layer(block, x, step, arrays, own_before, visibilities)
    _add_logits(block, x)


def add_layer(
    block: BlockGraph,
    x: str,
    step: Step,
    arrays: dict[str, ArraySpec],
    num_before: str,
    visibilities: dict[tuple[str, str], Visibility],
) -> str:
    """A layer of x [M, D], with its state as inputs and outputs.

    Args:
        num_before: [B], tokens of each row's document that the layer has read.
        visibilities: those made so far, by the kind of attention and `num_before`; added to.
    """
    y = norm(block, x, f"{step.weights}.temporal_norm")
    if step.kind == "recurrent":
        y = _add_recurrent(block, y, step, arrays)
    else:
        y = _add_attention(block, y, step, arrays, num_before, visibilities)
    return join(block, x, y, step.weights)


def _add_recurrent(block: BlockGraph, x: str, step: Step, arrays: dict[str, ArraySpec]) -> str:
    before = state_inputs(block.graph, step, arrays)
    found = recurrent(block, x, f"{step.weights}.recurrent", *before)
    for name, value in zip(before, (found.last_hidden, found.tail), strict=True):
        block.graph.output(name + NEW, value, arrays[name].dtype.name, ["rows", *arrays[name].shape[1:]])
    return found.out


def state_inputs(graph: Graph, step: Step, arrays: Mapping[str, ArraySpec]) -> tuple[str, str]:
    """Adds the inputs h [B, L] and the convolution's tail [B, K-1, L] of a block; called as the arrays are."""
    names = f"{step.state}.hidden", f"{step.state}.convolution"
    for name in names:
        graph.input(name, arrays[name].dtype.name, ["rows", *arrays[name].shape[1:]])
    return names


def ring_inputs(graph: Graph, step: Step, arrays: Mapping[str, ArraySpec]) -> tuple[Ring, Ring]:
    """Adds the inputs that hold the keys and the values of an attention block; called as the arrays are."""
    rings, slots = [], "slots" if step.kind == "local_attention" else "capacity"
    for part in ("key", "value"):
        names = [name for name in (f"{step.state}.{part}s", f"{step.state}.{part}_scales") if name in arrays]
        inputs = [graph.input(n, arrays[n].dtype.name, ["rows", slots, *arrays[n].shape[2:]]) for n in names]
        rings.append(Ring(inputs[0], inputs[1] if len(inputs) > 1 else None))
    return rings[0], rings[1]


def _add_attention(
    block: BlockGraph,
    x: str,
    step: Step,
    arrays: dict[str, ArraySpec],
    num_before: str,
    visibilities: dict[tuple[str, str], Visibility],
) -> str:
    graph, rings, key = block.graph, ring_inputs(block.graph, step, arrays), (step.kind, num_before)
    if key not in visibilities:
        assert block.config.attention is not None
        window = block.config.attention.window_of(step.kind)
        visibilities[key] = add_visibility(graph, block.layout.positions, num_before, rings[0].values, window)
    y, *new = attention(block, x, f"{step.weights}.attention", *rings, visibilities[key])
    for part, rows in zip(("key", "value"), new, strict=True):
        _output_rows(graph, step, part, rows, arrays)
    return y


def _output_rows(graph: Graph, step: Step, part: str, rows: NewRows, arrays: dict[str, ArraySpec]) -> None:
    for name, value in ((f"{step.state}.{part}s", rows.values), (f"{step.state}.{part}_scales", rows.scales)):
        if value is not None:
            graph.output(name + NEW, value, arrays[name].dtype.name, ["rows", "tokens", *arrays[name].shape[2:]])


def _add_logits(block: BlockGraph, x: str) -> None:
    """The logits of the tokens asked for."""
    graph, config = block.graph, block.config
    index = graph.input("logit_index", "int64", ["logits", 2])
    by_token = graph.node("Reshape", x, block.rows_tokens)
    chosen = norm(block, graph.node("GatherND", by_token, index), "final_norm")
    graph.output("logits", head_logits(graph, block.linears, config, chosen), "float32", ["logits", config.vocab_size])


def head_logits(graph: Graph, linears: Linears, config: ModelConfig, x: str) -> str:
    """cap * tanh(x @ embedding^T / cap) of x [M, D], which is normalised already; [M, V]."""
    cap, logits = config.logit_soft_cap, linears.product(x, EMBEDDING)
    if cap is None:
        return logits
    logits = graph.node("Tanh", graph.node("Mul", logits, graph.constant(1.0 / cap)))
    return graph.node("Mul", logits, graph.constant(cap))
