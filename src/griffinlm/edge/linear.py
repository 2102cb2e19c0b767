"""Matrix products with weights in any format of `griffinlm.quantization`."""

import numpy as np

from griffinlm.checkpoint import SCALES, Checkpoint, StoredTensor
from griffinlm.edge.graph import MICROSOFT, Graph
from griffinlm.quantization import FLOAT32, Format

ACCURACY_INT8 = 4
"""MatMulNBits multiplies integers: activations become int8, a scale for every block of a row's channels."""

LARGEST_PART_BYTES = 16 << 20
"""ONNX Runtime lays weights out anew one initializer after another, so this bounds what is held twice while loading."""

SMALLEST_SCALE = 1e-30
"""Keeps a row of zeros from dividing by zero."""


class Linears:
    """Adds the linears of one checkpoint to a graph.

    Every format leaves rows independent: activations are rounded by a scale of their own row (or of a part of it), so
    that nothing leaks from a token to an earlier one or from one conversation to another.

    Args:
        activation_levels: largest magnitude of a rounded activation in the `int8-channel` format: 127, or 63 where the
            processor adds pairs of products in 16 bits with saturation.
    """

    def __init__(self, graph: Graph, checkpoint: Checkpoint, activation_levels: int) -> None:
        self._graph, self._checkpoint, self._levels = graph, checkpoint, activation_levels
        self._rounded: dict[str, tuple[str, str]] = {}
        self.inputs: dict[str, str] = {}
        """The value that each weight is multiplied with, by parameter name."""

    def values(self, name: str) -> "np.ndarray | StoredTensor":
        """A float32 parameter: where it lies, or its values; raises CheckpointError where it holds NaN or infinity."""
        values, stored = self.array(name), self._checkpoint.stored(name)
        return stored if stored is not None and stored.dtype == "float32" else values

    def array(self, name: str) -> np.ndarray:
        """The float32 values of a parameter."""
        return self._checkpoint.tensor(name).astype(np.float32, copy=False)

    def parameter(self, name: str) -> str:
        return self._graph.weight(name, self.values(name))

    def linear(self, x: str, name: str, *, bias: bool) -> str:
        """x [M, K] @ weight^T (+ bias) for the linear whose parameters are `name`.weight and `name`.bias."""
        bias_name = self.parameter(f"{name}.bias") if bias else None
        return self.product(x, f"{name}.weight", bias_name)

    def product(self, x: str, name: str, bias: str | None = None) -> str:
        """x [M, K] times the transpose of parameter `name` [N, K], plus `bias` [N] where given."""
        self.inputs[name] = x
        num_rows, size = self._checkpoint.config.parameter_shapes()[name]
        kind = self._format(name)
        if not kind.is_quantized:
            return self._graph.node("Gemm", x, self.parameter(name), *([bias] if bias else []), transB=1)
        if kind.is_channel:
            return self._by_channel(x, name, bias)
        num_parts = _num_parts(self._stored(name))
        if num_parts == 1:
            return self._by_block(x, name, kind, (num_rows, size), bias=bias)
        shape = num_rows // num_parts, size
        parts = [self._by_block(x, name, kind, shape, i) for i in range(num_parts)]
        out = self._graph.node("Concat", *parts, axis=1)
        return self._graph.node("Add", out, bias) if bias else out

    def block_diagonal(self, x: str, name: str, parts: tuple[str, ...]) -> str:
        """Each slice of the channels through its own matrix: u_i @ weight[i] + bias[i], joined to [M, L].

        Args:
            x: [M, L], all channels; parts: the same cut into the slices.
        """
        graph, weight_name = self._graph, f"{name}.weight"
        self.inputs[weight_name] = x
        num_blocks, size, _ = self._checkpoint.config.parameter_shapes()[weight_name]
        kind = self._format(weight_name)
        if kind.is_quantized:
            products = [self._by_block(part, weight_name, kind, (size, size), i) for i, part in enumerate(parts)]
        else:
            weights = self.values(weight_name)
            products = [
                graph.node("MatMul", part, graph.weight(f"{weight_name}.{i}", _part(weights, i, (size, size))))
                for i, part in enumerate(parts)
            ]
        joined = products[0] if num_blocks == 1 else graph.node("Concat", *products, axis=1)
        bias = self.array(f"{name}.bias").reshape(-1)
        return graph.node("Add", joined, graph.weight(f"{name}.bias", bias))

    def _format(self, name: str) -> Format:
        quantization = self._checkpoint.quantization
        if quantization is None:
            return FLOAT32
        return quantization.recipe.format_of(name, self._checkpoint.config.parameter_shapes()[name])

    def _stored(self, name: str) -> StoredTensor:
        stored = self._checkpoint.stored(name)
        assert stored is not None, f"{name} is quantized, so it lies in a file of ours"
        return stored

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

    def _by_channel(self, x: str, name: str, bias: str | None) -> str:
        """An integer product with one scale an output channel and one a row of x."""
        graph = self._graph
        rounded, scale = self._rounded_rows(x)
        weight, scales = (
            graph.weight(name, self._stored(name)),
            graph.weight(name + SCALES, self._stored(name + SCALES)),
        )
        one = graph.constant(1.0)
        out = graph.node("MatMulIntegerToFloat", rounded, weight, one, scales, self._middle, domain=MICROSOFT)
        out = graph.node("Mul", out, scale)
        return graph.node("Add", out, bias) if bias else out

    @property
    def _middle(self) -> str:
        """What stands for zero: with 63 levels the numbers are 1 to 127, and two products with int8 fit 16 bits."""
        return self._graph.constant(self._levels + 1, np.uint8)

    def _rounded_rows(self, x: str) -> tuple[str, str]:
        """x [M, K] as uint8 around the middle, and the scale of each row [M, 1]; linears of one input share these."""
        if x not in self._rounded:
            graph = self._graph
            largest = graph.node("ReduceMax", graph.node("Abs", x), graph.constant([-1], np.int64), keepdims=1)
            scale = graph.node("Mul", largest, graph.constant(1.0 / self._levels))
            scale = graph.node("Max", scale, graph.constant(SMALLEST_SCALE))
            flat = graph.node("Squeeze", scale, graph.constant([1], np.int64))
            middle = graph.node("Expand", self._middle, graph.node("Shape", flat))
            self._rounded[x] = graph.node("QuantizeLinear", x, flat, middle, axis=0), scale
        return self._rounded[x]


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
