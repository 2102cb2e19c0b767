"""The graph of a model: what `ModelConfig.plan()` says, in the operators of ONNX Runtime."""

import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.checkpoint.adapter import AdapterTerms
from griffinlm.config import ModelConfig, Step
from griffinlm.edge.blocks import BlockGraph, NewRows, Ring, attention, mlp, norm, recurrent
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.layout import Visibility, add_layout, add_visibility
from griffinlm.edge.linear import Linears
from griffinlm.state import ArraySpec, block_layout

EMBEDDING = "embedding.weight"
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
    With adapters there are the inputs of `low_rank.AdaptedRows` too.
    """
    graph, config = Graph(), checkpoint.config
    linears = Linears(graph, checkpoint, activation_levels, adapters)
    add_model(graph, linears, config, window_dtype)
    return graph.build("griffin")


def add_model(graph: Graph, linears: Linears, config: ModelConfig, window_dtype: str) -> None:
    """Adds everything from the inputs to the outputs."""
    embedded = graph.input("embedded", "float32", ["rows", "tokens", config.width])
    layout = add_layout(graph, config)
    num_before = graph.input("num_before", "int64", ["rows"])
    shape = graph.node("Shape", layout.positions)
    rows_tokens = graph.node("Concat", shape, graph.constant([-1], np.int64), axis=0)
    block = BlockGraph(graph, config, linears, layout, rows_tokens, window_dtype)
    arrays = block_layout(config, 1, 1 if config.needs_capacity else None, window_dtype, "float32")
    visibilities: dict[str, Visibility] = {}
    x = graph.node("Reshape", embedded, graph.constant([-1, config.width], np.int64))
    for step in config.plan():
        y = norm(block, x, f"{step.weights}.temporal_norm")
        if step.kind == "recurrent":
            y = _add_recurrent(block, y, step, arrays)
        else:
            y = _add_attention(block, y, step, arrays, num_before, visibilities)
        x = graph.node("Add", x, y)
        y = mlp(block, norm(block, x, f"{step.weights}.mlp_norm"), f"{step.weights}.mlp")
        x = graph.node("Add", x, y)
    _add_logits(block, x)


def _add_recurrent(block: BlockGraph, x: str, step: Step, arrays: dict[str, ArraySpec]) -> str:
    graph = block.graph
    names = [f"{step.state}.hidden", f"{step.state}.convolution"]
    before = [graph.input(n, arrays[n].dtype.name, ["rows", *arrays[n].shape[1:]]) for n in names]
    y, *after = recurrent(block, x, f"{step.weights}.recurrent", *before)
    for name, value in zip(names, after, strict=True):
        graph.output(name + NEW, value, arrays[name].dtype.name, ["rows", *arrays[name].shape[1:]])
    return y


def _add_attention(
    block: BlockGraph,
    x: str,
    step: Step,
    arrays: dict[str, ArraySpec],
    num_before: str,
    visibilities: dict[str, Visibility],
) -> str:
    graph, rings = block.graph, []
    slots = "slots" if step.kind == "local_attention" else "capacity"
    for part in ("key", "value"):
        names = [name for name in (f"{step.state}.{part}s", f"{step.state}.{part}_scales") if name in arrays]
        inputs = [graph.input(n, arrays[n].dtype.name, ["rows", slots, *arrays[n].shape[2:]]) for n in names]
        rings.append(Ring(inputs[0], inputs[1] if len(inputs) > 1 else None))
    if step.kind not in visibilities:
        assert block.config.attention is not None
        window = block.config.attention.window_tokens if step.kind == "local_attention" else None
        visibilities[step.kind] = add_visibility(graph, block.layout, num_before, rings[0].values, window)
    y, *new = attention(block, x, f"{step.weights}.attention", rings[0], rings[1], visibilities[step.kind])
    for part, rows in zip(("key", "value"), new, strict=True):
        _output_rows(graph, step, part, rows, arrays)
    return y


def _output_rows(graph: Graph, step: Step, part: str, rows: NewRows, arrays: dict[str, ArraySpec]) -> None:
    for name, value in ((f"{step.state}.{part}s", rows.values), (f"{step.state}.{part}_scales", rows.scales)):
        if value is not None:
            graph.output(name + NEW, value, arrays[name].dtype.name, ["rows", "tokens", *arrays[name].shape[2:]])


def _add_logits(block: BlockGraph, x: str) -> None:
    """cap * tanh(norm(x) @ embedding^T / cap) for the tokens asked for."""
    graph, config = block.graph, block.config
    index = graph.input("logit_index", "int64", ["logits", 2])
    by_token = graph.node("Reshape", x, block.rows_tokens)
    chosen = norm(block, graph.node("GatherND", by_token, index), "final_norm")
    logits = block.linears.product(chosen, EMBEDDING)
    cap = config.logit_soft_cap
    if cap is not None:
        logits = graph.node("Tanh", graph.node("Mul", logits, graph.constant(1.0 / cap)))
        logits = graph.node("Mul", logits, graph.constant(cap))
    graph.output("logits", logits, "float32", ["logits", config.vocab_size])
