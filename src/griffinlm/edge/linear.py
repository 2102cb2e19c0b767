"""Matrix products with weights in any format of `griffinlm.quantization`."""

from collections.abc import Callable, Sequence

import numpy as np
from onnx import TensorProto

from griffinlm.checkpoint import SCALES, Checkpoint, StoredTensor
from griffinlm.checkpoint.adapter import AdapterTerms
from griffinlm.config import LOW_RANK
from griffinlm.edge.graph import MICROSOFT, Graph
from griffinlm.edge.low_rank import LowRankTerms
from griffinlm.quantization import FLOAT32, Format

ACCURACY_INT8 = 4
"""MatMulNBits multiplies integers: activations become int8, a scale for every block of a row's channels."""

LARGEST_PART_BYTES = 24 << 20
"""ONNX Runtime lays weights out anew one initializer after another, so this bounds what is held twice while loading."""

SMALLEST_SCALE = 1e-30
"""Keeps a row of zeros from dividing by zero."""


class Linears:
    """Adds the linears of one checkpoint to a graph. They are called by their places; a shared matrix is held once.

    Every format leaves rows independent: activations are rounded by a scale of their own row (or of a part of it), so
    that nothing leaks from a token to an earlier one or from one conversation to another.

    Args:
        activation_levels: largest magnitude of a rounded activation in the `int8-channel` format: 127, or 63 where the
            processor adds pairs of products in 16 bits with saturation.
        adapters: low-rank terms that some rows add, in float32, to the products with matrices of any format.
    """

    def __init__(
        self, graph: Graph, checkpoint: Checkpoint, activation_levels: int, adapters: AdapterTerms | None = None
    ) -> None:
        self._graph, self._checkpoint, self._levels = graph, checkpoint, activation_levels
        self._shapes, self._parameter_at = checkpoint.config.place_shapes(), checkpoint.config.parameter_at
        self._low_rank = LowRankTerms(graph, adapters or {})
        self._rounded: dict[str, tuple[str, str]] = {}
        self.inputs: dict[str, list[str]] = {}
        """The values that each weight is multiplied with, one for each layer that has it, by parameter name."""

    def values(self, place: str) -> "np.ndarray | StoredTensor":
        """A float32 parameter: where it lies, or its values; raises CheckpointError where it holds NaN or infinity."""
        values, stored = self.array(place), self._checkpoint.stored(self._parameter_at(place))
        return stored if stored is not None and stored.dtype == "float32" else values

    def array(self, place: str) -> np.ndarray:
        """The float32 values of a parameter."""
        return self._checkpoint.tensor(self._parameter_at(place)).astype(np.float32, copy=False)

    def parameter(self, place: str) -> str:
        """A parameter that is no matrix of a layer, [N]."""
        return self._weight(place)

    def derived(self, place: str, ending: str, of: Callable[[np.ndarray], np.ndarray]) -> str:
        """What `of` makes of the parameter at `place`, [N], called by the place and an ending."""
        return self._graph.weight(f"{place}{ending}", of(self.array(place)))

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        """x [M, K] @ weight^T (+ bias) for the linear whose parameters are `name`.weight and `name`.bias."""
        bias_name = self.parameter(f"{name}.bias") if bias else None
        return self.product(x, f"{name}.weight", bias_name)

    def product(self, x: str, place: str, bias: str | None = None) -> str:
        """x [M, K] times the transpose of the matrix [N, K] at `place`, plus `bias` [N] and the place's own terms."""
        name = self._parameter_at(place)
        self.inputs.setdefault(name, []).append(x)
        out = self._with_own_term(x, self._product(x, name, bias), place)
        return self._low_rank.add(x, out, place)

    def _product(self, x: str, name: str, bias: str | None) -> str:
        num_rows, size = self._shapes[name]
        kind = self._format(name)
        if not kind.is_quantized:
            return self._graph.node("Gemm", x, self._weight(name), *([bias] if bias else []), transB=1)
        num_parts = _num_parts(self._stored(name))
        shape = num_rows // num_parts, size
        if kind.is_channel:
            rounded, row_scale = self._rounded_rows(x)
            parts = [self._by_channel(rounded, name, shape, i) for i in range(num_parts)]
            out = self._graph.node("Mul", self._joined(parts), row_scale)
        elif num_parts == 1:
            return self._by_block(x, name, kind, shape, bias=bias)
        else:
            out = self._joined([self._by_block(x, name, kind, shape, i) for i in range(num_parts)])
        return self._graph.node("Add", out, bias) if bias else out

    def _with_own_term(self, x: str, product: str, place: str) -> str:
        """product [M, N] plus up (down x) of x [M, K], where the layer has such a term at `place`."""
        down, up = term_names(place)
        if down not in self._shapes:
            return product
        return self._graph.node("Add", product, self._product(self._product(x, down, None), up, None))

    def _with_own_terms(self, parts: Sequence[str], products: Sequence[str], place: str) -> Sequence[str]:
        """The same for the blocks of a gate, whose terms lie one after another."""
        names = term_names(place)
        if names[0] not in self._shapes:
            return products
        graph, summed = self._graph, []
        factors = {name: (self.values(name), self._shapes[name][1:]) for name in names}
        for index, (part, product) in enumerate(zip(parts, products, strict=True)):
            down, up = (
                graph.weight(f"{name}.{index}", _part(values, index, shape))
                for name, (values, shape) in factors.items()
            )
            summed.append(graph.node("Gemm", graph.node("Gemm", part, down, transB=1), up, product, transB=1))
        return summed

    def block_diagonal(self, x: str, name: str, parts: tuple[str, ...]) -> str:
        """Each slice of the channels through its own matrix: u_i @ weight[i] + bias[i], joined to [M, L].

        Args:
            x: [M, L], all channels; parts: the same cut into the slices.
        """
        graph, place = self._graph, f"{name}.weight"
        weight_name = self._parameter_at(place)
        self.inputs.setdefault(weight_name, []).append(x)
        size = self._shapes[weight_name][1]
        kind = self._format(weight_name)
        if kind.is_quantized:
            products = [self._by_block(part, weight_name, kind, (size, size), i) for i, part in enumerate(parts)]
        else:
            weights = self.values(place)
            products = [
                graph.node("MatMul", part, graph.weight(f"{weight_name}.{i}", _part(weights, i, (size, size))))
                for i, part in enumerate(parts)
            ]
        out = self._joined(self._with_own_terms(parts, products, place))
        out = graph.node("Add", out, self.derived(f"{name}.bias", "", np.ravel))
        return self._low_rank.add(x, out, place)

    def rows(self, ids: str, place: str) -> str:
        """The rows [M, K] of the matrix [N, K] at `place` by their numbers [M], float32; the matrix is held once."""
        graph, name = self._graph, self._parameter_at(place)
        num_rows, size = self._shapes[name]
        kind = self._format(name)
        if not kind.is_quantized:
            return graph.node("Gather", self._weight(place), ids, axis=0)
        num_parts = _num_parts(self._stored(name))
        rows_a_part = graph.integers(num_rows // num_parts)
        inner = graph.node("Mod", ids, rows_a_part)
        part = graph.node("Unsqueeze", graph.node("Div", ids, rows_a_part), graph.integers([1]))
        rows = self._part_rows(inner, name, kind, num_parts, 0)
        for index in range(1, num_parts):
            is_here = graph.node("Equal", part, graph.integers(index))
            rows = graph.node("Where", is_here, self._part_rows(inner, name, kind, num_parts, index), rows)
        bounds = (graph.integers([bound]) for bound in (0, size, 1))
        return graph.node("Slice", rows, *bounds)

    def _part_rows(self, ids: str, name: str, kind: Format, num_parts: int, index: int) -> str:
        """Rows [M, K or more] of one of the equal parts of a quantized matrix."""
        graph = self._graph
        gathered = []
        for stored_name in (name, name + SCALES):
            stored = self._stored(stored_name)
            shape = stored.shape[0] // num_parts, *stored.shape[1:]
            weight = graph.weight(f"{stored_name}.{index}", _part(stored, index, shape))
            gathered.append(graph.node("Gather", weight, ids, axis=0))
        numbers, scales = gathered
        last = graph.integers([-1])
        if kind.bits == 4:
            low = graph.node("BitwiseAnd", numbers, graph.constant(15, np.uint8))
            high = graph.node("BitShift", numbers, graph.constant(4, np.uint8), direction="RIGHT")
            numbers = graph.node("Concat", *(graph.node("Unsqueeze", n, last) for n in (low, high)), axis=-1)
            numbers = graph.node("Reshape", numbers, graph.integers([0, 0, -1]))
        values = graph.node("Cast", numbers, to=TensorProto.FLOAT)
        if not kind.is_channel:
            values = graph.node("Sub", values, graph.constant(2.0 ** (kind.bits - 1)))
        values = graph.node("Mul", values, graph.node("Unsqueeze", scales, last))
        return graph.node("Reshape", values, graph.integers([0, -1]))

    def _weight(self, place: str) -> str:
        return self._graph.weight(self._parameter_at(place), self.values(place))

    def _format(self, name: str) -> Format:
        quantization = self._checkpoint.quantization
        if quantization is None:
            return FLOAT32
        return quantization.recipe.format_of(name, self._shapes[name])

    def _stored(self, name: str) -> StoredTensor:
        stored = self._checkpoint.stored(name)
        assert stored is not None, f"{name} is quantized, so it lies in a file of ours"
        return stored

    def _joined(self, parts: Sequence[str]) -> str:
        """Products side by side."""
        return parts[0] if len(parts) == 1 else self._graph.node("Concat", *parts, axis=1)

    def _by_block(
        self, x: str, name: str, kind: Format, shape: tuple[int, int], index: int = 0, bias: str | None = None
    ) -> str:
        """x times the transpose of the matrix of `shape` that stands at place `index` among the rows of `name`."""
        graph, (num_rows, size) = self._graph, shape
        numbers, scales = self._stored(name), self._stored(name + SCALES)
        return graph.node(
            "MatMulNBits",
            x,
            graph.weight(f"{name}.{index}", _part(numbers, index, (num_rows, *numbers.shape[1:]))),
            graph.weight(f"{name}{SCALES}.{index}", _part(scales, index, (num_rows, *scales.shape[1:]))),
            *(("", "", bias) if bias else ()),
            domain=MICROSOFT,
            K=size,
            N=num_rows,
            bits=kind.bits,
            block_size=kind.block_size,
            accuracy_level=ACCURACY_INT8,
        )

    def _by_channel(self, rounded: str, name: str, shape: tuple[int, int], index: int) -> str:
        """Integer products of rounded rows with the matrix of `shape` at place `index`, times its channels' scales."""
        graph, (num_rows, _) = self._graph, shape
        return graph.node(
            "QGemm",
            rounded,
            graph.constant(1.0 / self._levels),
            self._middle,
            graph.weight(f"{name}.{index}", _part(self._stored(name), index, shape)),
            graph.weight(f"{name}{SCALES}.{index}", _part(self._stored(name + SCALES), index, (num_rows,))),
            graph.weight(f"zeros.{num_rows}", np.zeros(num_rows, np.int8)),
            domain=MICROSOFT,
            transB=1,
        )

    @property
    def _middle(self) -> str:
        """What stands for zero: with 63 levels the numbers are 1 to 127, and two products with int8 fit 16 bits."""
        return self._graph.constant(self._levels + 1, np.uint8)

    def _rounded_rows(self, x: str) -> tuple[str, str]:
        """x [M, K] in steps of max|row| / levels as uint8 around the middle, and max|row| [M, 1].

        Linears of one input share these.
        """
        if x not in self._rounded:
            graph = self._graph
            largest = graph.node("ReduceMax", graph.node("Abs", x), graph.integers([-1]), keepdims=1)
            # Where no logits are wanted the head's input has no rows, and ONNX Runtime leaves its shape unreduced.
            largest = graph.node("Reshape", largest, graph.integers([-1, 1]))
            largest = graph.node("Max", largest, graph.constant(SMALLEST_SCALE))
            step = graph.constant(1.0 / self._levels)
            rounded = graph.node("QuantizeLinear", graph.node("Div", x, largest), step, self._middle)
            self._rounded[x] = rounded, largest
        return self._rounded[x]


def term_names(place: str) -> tuple[str, str]:
    """Where down and up of the term stand that a layer may add to its product with the matrix at `place`."""
    term = place.removesuffix(".weight") + LOW_RANK
    return f"{term}.down", f"{term}.up"


def _part(values: "np.ndarray | StoredTensor", index: int, shape: tuple[int, ...]) -> "np.ndarray | StoredTensor":
    """The values of `shape` that stand at place `index` among equal ones laid one after another."""
    count = int(np.prod(shape))
    if isinstance(values, np.ndarray):
        return values.reshape(-1)[index * count : (index + 1) * count].reshape(shape)
    offset = values.offset + index * count * np.dtype(values.dtype).itemsize
    return StoredTensor(values.file, offset, values.dtype, shape)


def _num_parts(stored: StoredTensor) -> int:
    """Into how many equal runs of rows a matrix is cut, so that each is at most `LARGEST_PART_BYTES`."""
    num_rows, num_bytes = stored.shape[0], stored.num_bytes
    least = -(-num_bytes // LARGEST_PART_BYTES)
    return next((parts for parts in range(least, 2 * least + 1) if num_rows % parts == 0), 1)
