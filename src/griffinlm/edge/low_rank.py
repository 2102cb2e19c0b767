"""Low-rank terms of the linears of a graph, for those rows of a call that have an adapter."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from griffinlm.checkpoint.adapter import AdapterTerms, LowRank
from griffinlm.edge.graph import Graph

NO_ADAPTER = -1


class AdaptedRows(NamedTuple):
    """The rows of a call's activations [M, ...] that have an adapter, as the graph takes them.

    One group for each of G adapters, all with as many rows as the longest has; the rest of a group repeats a row.
    """

    adapter_ids: np.ndarray
    """[G] int64, places in the order of the adapters."""
    adapter_rows: np.ndarray
    """[G, R] int64, the rows of each group."""
    adapted_rows: np.ndarray
    """[A, 1] int64, every row with an adapter, once."""
    adapted_places: np.ndarray
    """[A] int64, where among the G * R rows of all groups it stands."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes: calls of equal shapes can use the same arrays."""
        return tuple(array.shape for array in self)


def adapted_rows(adapters: np.ndarray, is_real: np.ndarray) -> AdaptedRows:
    """Sorts the tokens of a call by adapter.

    Args:
        adapters: [B], place of each row's adapter, or `NO_ADAPTER`.
        is_real: [B, T], padding left out.
    """
    of_token = np.where(is_real, adapters[:, None], NO_ADAPTER).reshape(-1)
    ids = np.unique(of_token[of_token != NO_ADAPTER])
    groups = [np.flatnonzero(of_token == id) for id in ids]
    longest = max(map(len, groups), default=0)
    rows = [np.concatenate([group, np.full(longest - len(group), group[0])]) for group in groups]
    places = [index * longest + np.arange(len(group)) for index, group in enumerate(groups)]
    empty = np.zeros(0, np.int64)
    return AdaptedRows(
        ids.astype(np.int64),
        np.asarray(rows, np.int64).reshape(len(groups), longest),
        np.concatenate([empty, *groups])[:, None],
        np.concatenate([empty, *places]),
    )


class LowRankTerms:
    """Adds y += up (down x) to the linears of a graph, in the rows that its further inputs name.

    The matrices of all adapters lie on top of each other, their ranks filled up with zeros; those of an adapter that
    has no term for a linear are zeros. A call without any such row skips all of this.
    """

    def __init__(self, graph: Graph, adapters: AdapterTerms) -> None:
        self._graph, self._adapters = graph, tuple(adapters.values())
        self._names = frozenset(name for terms in self._adapters for name in terms)
        if not self._names:
            return
        self._ids = graph.input("adapter_ids", "int64", ["groups"])
        self._rows = graph.input("adapter_rows", "int64", ["groups", "longest"])
        self._adapted = graph.input("adapted_rows", "int64", ["adapted", 1])
        self._places = graph.input("adapted_places", "int64", ["adapted"])
        num_groups = graph.node("Squeeze", graph.node("Shape", self._ids))
        self._is_needed = graph.node("Greater", num_groups, graph.integers(0))

    def add(self, x: str, y: str, name: str) -> str:
        """y [M, N] with the terms of the matrix `name`, of x [M, K]; y itself where no adapter has one."""
        if name not in self._names:
            return y
        adapted, plain = self._graph.branch(), self._graph.branch()
        then = self._added(adapted, x, y, name)
        return self._graph.choose(self._is_needed, (adapted, [then]), (plain, [plain.node("Identity", y)]))[0]

    def _added(self, graph: Graph, x: str, y: str, name: str) -> str:
        down, up = (self._chosen(graph, name, part) for part in ("down", "up"))
        first = next(terms[name] for terms in self._adapters if name in terms)
        inner = graph.node("Gather", x, self._rows, axis=0)  # [G, R, K]
        is_gate, num_outputs = first.up.ndim == 3, first.up.shape[-2]
        if is_gate:
            num_blocks, num_outputs = first.up.shape[0], first.up.shape[0] * first.up.shape[1]
            inner = graph.node("Reshape", inner, graph.integers([0, 0, num_blocks, -1]))
            inner = graph.node("Transpose", inner, perm=[0, 2, 1, 3])  # [G, h, R, b]
        terms = graph.node("MatMul", graph.node("MatMul", inner, down), up)
        if is_gate:
            terms = graph.node("Transpose", terms, perm=[0, 2, 1, 3])
        terms = graph.node("Reshape", terms, graph.integers([-1, num_outputs]))
        return graph.node(
            "ScatterND", y, self._adapted, graph.node("Gather", terms, self._places, axis=0), reduction="add"
        )

    def _chosen(self, graph: Graph, name: str, part: str) -> str:
        """One side of the terms of each group: down [G, (h,) K, r] or up [G, (h,) r, N]."""
        stacked = graph.weight(f"{name}.{part}", _stacked([terms.get(name) for terms in self._adapters], part))
        # Gathering copies, which a single adapter can be spared.
        return stacked if len(self._adapters) == 1 else graph.node("Gather", stacked, self._ids, axis=0)


def num_bytes(adapters: AdapterTerms) -> int:
    """Bytes of the terms as the graph holds them, ranks filled up."""
    all_terms = tuple(adapters.values())
    total = 0
    for name in {name for terms in all_terms for name in terms}:
        total += len(all_terms) * max(terms[name].nbytes for terms in all_terms if name in terms)
    return total


def _stacked(terms: Sequence[LowRank | None], part: str) -> np.ndarray:
    """[n, ..., K, r] of the down or [n, ..., r, N] of the up matrices, zeros where there are none."""
    matrices = [None if term is None else getattr(term, part).swapaxes(-1, -2) for term in terms]
    shapes = [matrix.shape for matrix in matrices if matrix is not None]
    out = np.zeros((len(terms), *np.max(shapes, axis=0)), np.float32)
    for index, matrix in enumerate(matrices):
        if matrix is not None:
            out[(index, *map(slice, matrix.shape))] = matrix
    return out
