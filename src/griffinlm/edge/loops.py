"""The graphs by which tokens go through a recursive model loop by loop, rows at different depths in one call."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from onnx import TensorProto

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import Step
from griffinlm.edge.blocks import BlockGraph, norm
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.layout import Visibility, add_single_layout
from griffinlm.edge.linear import Linears, term_names
from griffinlm.edge.model import add_layer, head_logits
from griffinlm.edge.scan import add_step
from griffinlm.state import row_layout

OUT, NORMED = "out", "normed"


class LoopedLinears(Linears):
    """The linears of the shared layers, called by their places in the first loop, for rows [M, ...] of any loop.

    What loops share is one weight for all rows. Of what each has of its own a row gets that of its loop: vectors are
    gathered, and low-rank terms are computed for all rows in every loop, with zeros where the row is in another.

    Args:
        loop_of: [M] int64, the loop of each row.
    """

    def __init__(self, graph: Graph, checkpoint: Checkpoint, activation_levels: int, loop_of: str) -> None:
        super().__init__(graph, checkpoint, activation_levels)
        recursion = checkpoint.config.recursion
        assert recursion is not None
        self._loops, self._num_layers = range(recursion.num_loops), checkpoint.config.num_shared_layers
        self._loop_of, column = loop_of, graph.integers([1])
        is_here = (graph.node("Equal", loop_of, graph.integers(loop)) for loop in self._loops)
        self._shares = [
            graph.node("Unsqueeze", graph.node("Cast", here, to=TensorProto.FLOAT), column) for here in is_here
        ]
        """By loop [M, 1], 1 for its rows and 0 for others."""

    def parameter(self, place: str) -> str:
        """[N] where all loops share it, else [M, N]."""
        return self.derived(place, "", np.asarray)

    def derived(self, place: str, ending: str, of: Callable[[np.ndarray], np.ndarray]) -> str:
        """The same of what `of` makes of it."""
        places = [self._at(place, loop) for loop in self._loops]
        if len({self._parameter_at(one) for one in places}) == 1:
            return super().derived(place, ending, of)
        values = np.stack([of(self.array(one)) for one in places])
        return self._graph.node("Gather", self._graph.weight(f"{place}{ending}.loops", values), self._loop_of, axis=0)

    def product(self, x: str, place: str, bias: str | None = None) -> str:
        """As of `Linears`; the bias may be [M, N]."""
        out = super().product(x, place)
        return out if bias is None else self._graph.node("Add", out, bias)

    def _with_own_term(self, x: str, product: str, place: str) -> str:
        for loop, share in zip(self._loops, self._shares, strict=True):
            down, up = term_names(self._at(place, loop))
            if down in self._shapes:
                inner = self._graph.node("Mul", self._product(x, down, None), share)
                product = self._graph.node("Add", product, self._product(inner, up, None))
        return product

    def _with_own_terms(self, parts: Sequence[str], products: Sequence[str], place: str) -> Sequence[str]:
        for loop, share in zip(self._loops, self._shares, strict=True):
            here = self._at(place, loop)
            if term_names(here)[0] in self._shapes:
                own = [self._graph.node("Mul", part, share) for part in parts]
                products = super()._with_own_terms(own, products, here)
        return products

    def _at(self, place: str, loop: int) -> str:
        """A place of the first loop in another one; what stands outside of the layers stands there for all."""
        if not place.startswith("layers."):
            return place
        _, number, rest = place.split(".", 2)
        return f"layers.{int(number) + loop * self._num_layers}.{rest}"


def build_loop_graph(checkpoint: Checkpoint, window_dtype: str, activation_levels: int) -> BuiltGraph:
    """The shared layers over one token a row, each row in a loop of its own.

    Inputs: `x` [rows, D], the tokens' numbers in front of their loops; `loop_of` [rows]; `num_before` [rows], tokens of
    the document that the row's loop has read; and the state's arrays, called as those of the first loop.
    Outputs: `out` [rows, D] behind the loops, `normed` the same after the final norm, and for every state array one of
    its name and `.new`, as of `model.build_graph`.
    """
    graph, config = Graph(), checkpoint.config
    linears = LoopedLinears(graph, checkpoint, activation_levels, graph.input("loop_of", "int64", ["rows"]))
    return _build(graph, linears, checkpoint, config.plan()[: config.num_shared_layers], window_dtype)


def build_last_graph(checkpoint: Checkpoint, window_dtype: str, activation_levels: int) -> BuiltGraph:
    """The same for the layers behind the last loop, which share nothing; without `loop_of`."""
    graph, config = Graph(), checkpoint.config
    linears = Linears(graph, checkpoint, activation_levels)
    return _build(graph, linears, checkpoint, config.plan()[config.num_looped_layers :], window_dtype)


def build_head_graph(checkpoint: Checkpoint, activation_levels: int) -> BuiltGraph:
    """`logits` [rows, vocab] of `normed` [rows, D]."""
    graph, config = Graph(), checkpoint.config
    normed = graph.input(NORMED, "float32", ["rows", config.width])
    logits = head_logits(graph, Linears(graph, checkpoint, activation_levels), config, normed)
    graph.output("logits", logits, "float32", ["rows", config.vocab_size])
    return graph.build("head")


def _build(
    graph: Graph, linears: Linears, checkpoint: Checkpoint, steps: Sequence[Step], window_dtype: str
) -> BuiltGraph:
    config = checkpoint.config
    x = graph.input("x", "float32", ["rows", config.width])
    num_before = graph.input("num_before", "int64", ["rows"])
    positions = graph.node("Unsqueeze", num_before, graph.integers([1]))
    rows_tokens = graph.node("Concat", graph.node("Shape", positions), graph.integers([-1]), axis=0)
    layout = add_single_layout(graph, config, positions)
    block = BlockGraph(graph, config, linears, layout, rows_tokens, window_dtype, partial(add_step, graph))
    arrays = row_layout(config, window_dtype, "float32")
    visibilities: dict[tuple[str, str], Visibility] = {}
    for step in steps:
        x = add_layer(block, x, step, arrays, num_before, visibilities)
    graph.output(OUT, x, "float32", ["rows", config.width])
    graph.output(NORMED, norm(block, x, "final_norm"), "float32", ["rows", config.width])
    return graph.build("loops")
