"""The graph is valid ONNX of operators that every build of ONNX Runtime has, and the weights stay where they are.

States:
- the checker accepts it with its weights, and ONNX Runtime runs the file to the same numbers;
- operators are standard or of com.microsoft, without loops over time;
- every matrix is external data inside the checkpoint's files, shards too, and nothing large is copied;
- a matrix in parts = the matrix whole.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.external_data_helper import ExternalDataInfo, uses_external_data
from tolerances import assert_agree

from griffinlm.checkpoint import Checkpoint, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.initial import initial_tensors
from griffinlm.config import AttentionConfig, RecurrentConfig
from griffinlm.edge import linear
from griffinlm.edge.engine import OnnxEngine, activation_levels, build_engine, new_session
from griffinlm.edge.graph import LARGEST_INLINE_BYTES, OPSET, BuiltGraph
from griffinlm.edge.model import build_graph

from .models import CONFIGS, RECIPE_OF, config_of, engines, read, write_model

LARGE = config_of(
    "Griffin",
    3,
    vocab_size=300,
    width=64,
    mlp_hidden=96,
    recurrent=RecurrentConfig(width=320, num_gate_blocks=5),
    attention=AttentionConfig(num_heads=2, head_size=32, window_tokens=7),
)
"""Large enough that its matrices and vectors stand outside the graph."""

MATRICES = [name for name in LARGE.parameter_shapes() if name.endswith(".weight") and ".conv." not in name]
MICROSOFT_OPERATORS = {"MatMulNBits", "QGemm"}


def write_beside_weights(built: BuiltGraph, folder: Path) -> Path:
    """The graph as a file next to the weights, and what only memory held as files of its own."""
    for name, values in built.arrays.items():
        (folder / name).write_bytes(values.tobytes())
    (folder / "model.onnx").write_bytes(built.proto.SerializeToString())
    return folder / "model.onnx"


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from all_nodes(attribute.g)


def prompt(num_tokens: int) -> dict[str, np.ndarray]:
    """Inputs of a graph for one row that reads its first tokens."""
    return {
        "positions": np.arange(num_tokens)[None],
        "num_before": np.zeros(1, np.int64),
        "logit_index": np.array([[0, t] for t in range(num_tokens)]),
    }


@pytest.mark.parametrize("window_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("weights", RECIPE_OF)
def test_checker_accepts_it_and_its_file_runs_to_the_same_logits(weights: str, window_dtype: str, tmp_path: Path):
    checkpoint = write_model(LARGE, tmp_path, weights)
    path = write_beside_weights(build_graph(checkpoint, window_dtype, activation_levels()), checkpoint.path)
    onnx.checker.check_model(path, full_check=True)
    engine = build_engine(checkpoint, window_dtype, 1)
    tokens = np.arange(20)[None]
    executor = engine.executor(1)
    state = {n: a for n, a in executor.export_state(0).items() if n not in ("num_tokens", "pending")}
    feeds = {**prompt(20), **state, "embedded": engine.embedding.rows(tokens)}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == feeds.keys()
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits, executor.prefill([0], tokens, None, "all")[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("weights", RECIPE_OF)
@pytest.mark.parametrize("name", CONFIGS)
def test_operators_are_standard_or_of_microsoft_and_none_loops(name: str, weights: str):
    proto = build_graph(engines(CONFIGS[name], weights).checkpoint, "int8", 127).proto
    nodes = list(all_nodes(proto.graph))
    assert {node.domain for node in nodes} <= {"", "com.microsoft"}
    assert {node.op_type for node in nodes if node.domain} <= MICROSOFT_OPERATORS
    standard = {node.op_type for node in nodes if not node.domain}
    assert all(onnx.defs.has(operator, max_inclusive_version=OPSET) for operator in standard)
    assert not standard & {"Scan", "Loop", "LSTM", "GRU", "RNN"}


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize("weights", ["float32", "int4", "int8", "mixed"])
def test_every_matrix_lies_in_the_checkpoints_files(weights: str, shard_bytes: int, tmp_path: Path):
    checkpoint = write_model(LARGE, tmp_path, weights, shard_bytes=shard_bytes)
    built = build_graph(checkpoint, "float32", 127)
    weights_files = {path.name: path.read_bytes() for path in checkpoint.path.glob("*.safetensors")}
    outside = in_files = 0
    for tensor in built.proto.graph.initializer:
        if not uses_external_data(tensor):
            assert len(tensor.raw_data) <= LARGEST_INLINE_BYTES
            continue
        place = ExternalDataInfo(tensor)
        if place.location not in weights_files:
            outside += built.arrays[tensor.name].nbytes
            continue
        in_files += place.length
        assert place.offset + place.length <= len(weights_files[place.location])
        stored = checkpoint.stored(tensor.name)
        if stored is not None and stored.shape == tuple(tensor.dims):
            content = weights_files[place.location][place.offset :][: place.length]
            assert content == stored.mapped().tobytes()
    assert in_files >= sum(checkpoint.stored(name).num_bytes for name in MATRICES)
    assert outside < 0.1 * in_files
    assert len(weights_files) == 1 or shard_bytes < 1 << 30
    assert built.folder == checkpoint.path.resolve()
    assert built.proto.ByteSize() < 400_000


def test_weights_of_another_type_are_arrays_in_memory(tmp_path: Path):
    write_checkpoint(LARGE, initial_tensors(LARGE, 0), tmp_path / "model", "griffinlm", dtype="bfloat16")
    built = build_graph(open_checkpoint(tmp_path / "model"), "float32", 127)
    assert built.folder is None
    assert {array.dtype.name for array in built.arrays.values()} == {"float32"}
    assert set(built.arrays) >= {name for name in MATRICES if "gate.weight" not in name}


@pytest.mark.parametrize("weights", ["int4", "int8-block32", "int8"])
def test_a_matrix_in_parts_equals_the_matrix_whole(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = write_model(LARGE, tmp_path, weights)
    tokens = np.arange(40)[None]
    whole = read(engine_of(checkpoint).executor(1), [0], tokens, [39, 1])
    num_nodes = len(build_graph(checkpoint, "float32", 127).proto.graph.node)
    monkeypatch.setattr(linear, "LARGEST_PART_BYTES", 2000)
    assert len(build_graph(checkpoint, "float32", 127).proto.graph.node) > num_nodes + 20
    parts = read(engine_of(checkpoint).executor(1), [0], tokens, [39, 1])
    assert_agree(parts, whole, "model, int8 or int4", "float32", "onnx")


def engine_of(checkpoint: Checkpoint) -> OnnxEngine:
    built = build_graph(checkpoint, "float32", 127)
    return OnnxEngine(checkpoint, new_session(built, checkpoint, 1), "float32")
