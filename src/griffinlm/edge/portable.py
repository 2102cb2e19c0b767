"""The graph as other programs run it: token ids go in, and all weights lie in one file beside it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from onnx import ModelProto, TensorProto

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import EMBEDDING
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.linear import Linears
from griffinlm.edge.model import add_model

TOKEN_IDS = "token_ids"
GRAPH_FILE, WEIGHTS_FILE = "model.onnx", "model.weights"
ACTIVATION_LEVELS = 127
"""WebAssembly and ARM add products of bytes in 32 bits, so a rounded activation may use the full range."""

ALIGNMENT_BYTES = 64
CHUNK_BYTES = 1 << 24


def build_portable_graph(checkpoint: Checkpoint, window_dtype: str) -> BuiltGraph:
    """The graph of `build_graph`, but with an input `token_ids` [rows, tokens] in the place of `embedded`.

    It gathers embedding_scale * embedding[token] itself, so that whoever calls it needs no weights in hand. Padding may
    have any id.
    """
    graph, config = Graph(), checkpoint.config
    if config.skips and config.recursion is not None:
        # All loops read all tokens here, so that nothing need be told of skipped ones.
        config = replace(config, recursion=replace(config.recursion, skips=False))
    linears = Linears(graph, checkpoint, ACTIVATION_LEVELS)
    token_ids = graph.input(TOKEN_IDS, "int64", ["rows", "tokens"])
    flat = graph.node("Reshape", token_ids, graph.integers([-1]))
    rows = graph.node("Mul", linears.rows(flat, EMBEDDING), graph.constant(config.embedding_scale))
    width = graph.integers([config.width])
    shape = graph.node("Concat", graph.node("Shape", token_ids), width, axis=0)
    add_model(graph, linears, config, window_dtype, graph.node("Reshape", rows, shape))
    return graph.build("griffin")


def write_portable_graph(built: BuiltGraph, folder: Path) -> None:
    """Writes `GRAPH_FILE` and, beside it, `WEIGHTS_FILE` with the bytes of every larger initializer."""
    proto = ModelProto()
    proto.CopyFrom(built.proto)
    with open(folder / WEIGHTS_FILE, "wb") as file:
        for tensor in proto.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            offset = file.tell()
            for part in _content(built, tensor.name, place):
                file.write(part)
            del tensor.external_data[:]
            written = {"location": WEIGHTS_FILE, "offset": offset, "length": file.tell() - offset}
            for key, value in written.items():
                tensor.external_data.add(key=key, value=str(value))
    (folder / GRAPH_FILE).write_bytes(proto.SerializeToString())


def _content(built: BuiltGraph, name: str, place: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of an initializer, a few at a time."""
    if name in built.arrays:
        yield built.arrays[name].reshape(-1).view(np.uint8).data
        return
    assert built.folder is not None, f"{name} is neither in memory nor in a file"
    with open(built.folder / place["location"], "rb") as source:
        source.seek(int(place["offset"]))
        yield from _read(source, int(place["length"]))


def _read(source: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        part = source.read(min(num_bytes, CHUNK_BYTES))
        assert part, "the file is shorter than when it was opened"
        num_bytes -= len(part)
        yield part
