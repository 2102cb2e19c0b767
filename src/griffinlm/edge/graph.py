"""A graph under construction: nodes with made-up names, constants, and weights that stay in their files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from griffinlm.checkpoint import CheckpointError, StoredTensor

OPSET, IR_VERSION = 23, 11
MICROSOFT = "com.microsoft"
LARGEST_INLINE_BYTES = 1024
"""Smaller tensors are written into the graph itself; larger ones stay outside, so a graph is never near 2 GB."""

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


class BuiltGraph(NamedTuple):
    """A model's graph and where its weights are."""

    proto: onnx.ModelProto
    folder: Path | None
    """Directory that the external data of `proto` is named in; None where all of it is in memory."""
    arrays: dict[str, np.ndarray]
    """Initializers that no file holds in the form that the graph needs."""


class Graph:
    """Collects nodes. A value is the name of a node's output; every method that makes nodes returns names."""

    def __init__(self, parent: "Graph | None" = None, holds_weights: bool = False) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        # A branch sees the initializers of the graph around it.
        self._root: Graph = self if parent is None else parent._root
        self._holder: Graph = self if parent is None or holds_weights else parent._holder
        self._initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._folder: Path | None = None
        self._num_names = 0
        self._prefix = "" if self._holder is self._root else f"{self._root.new_name('branch')}."
        """Of the weights that a branch holds, whose names must be no others'."""

    def new_name(self, what: str) -> str:
        """A name that no other value has."""
        root = self._root
        root._num_names += 1
        return f"{what}_{root._num_names}"

    def node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with one output."""
        return self.nodes(operator, *inputs, count=1, domain=domain, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, count: int, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Adds a node with `count` outputs."""
        outputs = tuple(self.new_name(operator) for _ in range(count))
        self._nodes.append(helper.make_node(operator, inputs, outputs, domain=domain, **attributes))
        return outputs

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """A small tensor inside the graph; equal ones are one."""
        array = np.asarray(values, dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        root = self._root
        if key not in root._constants:
            name = root._constants[key] = self.new_name("constant")
            root._initializers[name] = numpy_helper.from_array(array, name)
        return root._constants[key]

    def integers(self, values: Any) -> str:
        """`constant` of int64, as shapes, axes and indices are."""
        return self.constant(values, np.int64)

    def weight(self, name: str, values: "np.ndarray | StoredTensor") -> str:
        """An initializer: bytes of a file where they lie, or an array; asked for twice it is the same one.

        Raises:
            CheckpointError: links lead to files in several directories.
        """
        root, holder = self._root, self._holder
        name = holder._prefix + name
        if name in holder._initializers:
            return name
        # Arrays beside the graph can be given to the outermost one only.
        if isinstance(values, np.ndarray) and (holder is not root or values.nbytes <= LARGEST_INLINE_BYTES):
            holder._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            return name
        tensor = TensorProto(name=name, data_location=TensorProto.EXTERNAL, dims=values.shape)
        if isinstance(values, np.ndarray):
            root._arrays[name] = np.ascontiguousarray(values)
            tensor.data_type, place = ELEMENT_TYPES[values.dtype.name], {"location": name}
        else:
            root._set_folder(values.file)
            tensor.data_type = ELEMENT_TYPES[values.dtype]
            place = {"location": values.file.resolve().name, "offset": values.offset, "length": values.num_bytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        holder._initializers[name] = tensor
        return name

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))
        return name

    def output(self, name: str, value: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Gives `value` out of the graph under `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))

    def branch(self, holds_weights: bool = False) -> "Graph":
        """A graph for one side of `choose` or the body of `loop`, which may use every value made here so far.

        Args:
            holds_weights: whether its weights are its own, which takes memory. Quantized ones are laid out for speed
                only in the graph that holds them.
        """
        return Graph(parent=self, holds_weights=holds_weights)

    def choose(
        self, condition: str, then: "tuple[Graph, Sequence[str]]", otherwise: "tuple[Graph, Sequence[str]]"
    ) -> tuple[str, ...]:
        """Values of `then` where the condition holds, else of `otherwise`; only that side is computed."""
        branches: dict[str, Any] = {
            name: graph._branch_proto(name, values)
            for name, (graph, values) in (("then_branch", then), ("else_branch", otherwise))
        }
        return self.nodes("If", condition, count=len(then[1]), **branches)

    def loop(
        self, most: str, body: "Graph", inputs: Sequence[str], outputs: Sequence[str], carried: Sequence[str]
    ) -> tuple[str, ...]:
        """Runs a body, made by `branch`, until its condition fails or it has run `most` times.

        Args:
            inputs: names in the body of the number of the run, of a condition that is not looked at, and of the values
                that go from run to run.
            outputs: whether there is another run, these values after the run, and others that are kept of every run.
            carried: the values before the first run.

        Returns:
            the values after the last run, and of the others those of all runs stacked.
        """
        values = [onnx.ValueInfoProto(name=name) for name in inputs]
        number = helper.make_tensor_value_info(inputs[0], TensorProto.INT64, [])
        condition = helper.make_tensor_value_info(inputs[1], TensorProto.BOOL, [])
        results = [onnx.ValueInfoProto(name=name) for name in outputs]
        proto = helper.make_graph(
            body._nodes, "body", [number, condition, *values[2:]], results, [*body._initializers.values()]
        )
        return self.nodes("Loop", most, "", *carried, count=len(outputs) - 1, body=proto)

    def _branch_proto(self, name: str, values: Sequence[str]) -> onnx.GraphProto:
        outputs = [onnx.ValueInfoProto(name=value) for value in values]
        return helper.make_graph(self._nodes, name, [], outputs, [*self._initializers.values()])

    def build(self, name: str) -> BuiltGraph:
        """The finished model."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="griffinlm")
        return BuiltGraph(proto, self._folder, self._arrays)

    def _set_folder(self, file: Path) -> None:
        folder = file.resolve().parent
        if self._folder not in (None, folder):
            raise CheckpointError(
                f"{file} is a link to {folder}, other files of the model are in {self._folder}",
                hint="put all of them into one directory",
            )
        self._folder = folder
