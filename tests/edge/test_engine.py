"""Loading into ONNX Runtime: every container and type of weights, what is damaged, what does not fit."""

import dataclasses
import platform
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file
from tolerances import assert_agree

from griffinlm.checkpoint import (
    CheckpointError,
    initial_tensors,
    open_checkpoint,
    write_checkpoint,
    write_quantized,
)
from griffinlm.config import ModelConfig
from griffinlm.edge import engine as engine_module
from griffinlm.edge import memory
from griffinlm.edge.engine import OnnxEngine, activation_levels, build_engine, new_session
from griffinlm.edge.graph import BuiltGraph, Graph
from griffinlm.edge.linear import Linears
from griffinlm.edge.memory import NotEnoughMemoryError
from griffinlm.edge.model import build_graph
from griffinlm.errors import GriffinError
from griffinlm.model.engine import build_engine as build_torch_engine
from griffinlm.quantization import RECIPES

from .models import CONFIGS, Engines, assert_same_state, config_of, read, write_model

GRIFFIN = CONFIGS["Griffin"]
TINY = ModelConfig.preset("tiny-griffin")
PUBLISHED = dataclasses.replace(TINY, recurrent=dataclasses.replace(TINY.recurrent, num_gate_blocks=2))
"""Such as every format can hold."""


def assert_equal_to_torch(path: Path, config: ModelConfig | None = None, weights: str = "float32") -> None:
    """The onnx engine made of a checkpoint reads as the torch engine does."""
    checkpoint = open_checkpoint(path, config)
    reference = build_torch_engine(checkpoint.config, checkpoint.tensor, "float32", "float32", "cpu")
    pair = Engines(checkpoint, build_engine(checkpoint, "float32", 1), reference, weights)
    here, there, tokens = pair.executor(), pair.torch_executor(), pair.tokens(1, 20)
    found, expected = (read(executor, [0], tokens, [18, 1, 1]) for executor in (here, there))
    assert_agree(found, expected, *pair.row_against_torch)
    assert_same_state(here.export_state(0), there.export_state(0), pair.row_against_torch)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("format", ["griffinlm", "huggingface", "deepmind"])
def test_every_container_and_type_of_weights_runs(format, dtype, tmp_path: Path):
    write_checkpoint(PUBLISHED, initial_tensors(PUBLISHED, 0), tmp_path / "model", format, dtype=dtype)
    assert_equal_to_torch(tmp_path / "model", PUBLISHED)


@pytest.mark.parametrize("weights", ["float32", "int4", "int8"])
def test_shards_run_and_so_do_links_to_them(weights: str, tmp_path: Path):
    """As the cache of the Hugging Face hub keeps them: a directory of links to files with other names."""
    path = write_model(GRIFFIN, tmp_path, weights, shard_bytes=4000).path
    assert_equal_to_torch(path, weights=weights)
    blobs = tmp_path / "blobs"
    path.rename(blobs)
    path.mkdir()
    for number, file in enumerate(sorted(blobs.iterdir())):
        moved = file.rename(blobs / f"{number:064x}")
        (path / file.name).symlink_to(moved)
    assert_equal_to_torch(path, weights=weights)


def test_links_into_several_directories_are_refused_in_one_line(tmp_path: Path):
    path = write_model(GRIFFIN, tmp_path, shard_bytes=4000).path
    shard = sorted(path.glob("*.safetensors"))[1]
    (tmp_path / "elsewhere").mkdir()
    shutil.move(shard, tmp_path / "elsewhere" / shard.name)
    shard.symlink_to(tmp_path / "elsewhere" / shard.name)
    with pytest.raises(CheckpointError, match=r"link to .*elsewhere, other files of the model are in"):
        build_engine(open_checkpoint(path), "float32", 1)


@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize("name", ["embedding.weight", "layers.0.mlp.up.bias", "final_norm.scale", "layers.1.mlp.up"])
def test_a_value_that_is_not_finite_is_refused_by_name(name: str, weights: str, tmp_path: Path):
    if name == "layers.1.mlp.up":
        name += ".weight"
    file = write_model(GRIFFIN, tmp_path, weights).path / "model.safetensors"
    tensors = load_file(file)
    broken = name if tensors[name].dtype == np.float32 else f"{name}.scales"
    tensors[broken].reshape(-1)[-1] = np.nan
    save_file(tensors, file)
    message = "holds NaN or infinity" if weights == "float32" else "its checksum differs"
    with pytest.raises(CheckpointError, match=message):
        build_engine(open_checkpoint(file.parent), "float32", 1)


@pytest.mark.parametrize("weights", ["float32", "int4", "int8"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b[:4], lambda b: b""])
def test_a_truncated_file_is_refused_in_one_line(damage, weights: str, tmp_path: Path):
    file = write_model(GRIFFIN, tmp_path, weights).path / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(GriffinError, match=r"model\.safetensors") as caught:
        build_engine(open_checkpoint(file.parent), "float32", 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_one_changed_bit_of_quantized_weights_is_found(weights: str, tmp_path: Path):
    file = write_model(GRIFFIN, tmp_path, weights).path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-10] ^= 4
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="its checksum differs"):
        build_engine(open_checkpoint(file.parent), "float32", 1)


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_a_file_cut_after_it_was_opened_is_refused_in_one_line(weights: str, tmp_path: Path, monkeypatch):
    """As a disk that fills up or a download that is still running would have it."""
    checkpoint = write_model(GRIFFIN, tmp_path, weights)
    built = build_graph(checkpoint, "float32", 127)
    file = checkpoint.path / "model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load the model") as caught:
        new_session(built, checkpoint, 1)
    assert str(caught.value).isprintable()


def test_a_graph_that_cannot_run_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*arguments) -> BuiltGraph:
        built = build_graph(*arguments)
        built.proto.graph.node[0].op_type = "NoSuchOperator"
        return built

    monkeypatch.setattr(engine_module, "build_graph", broken)
    checkpoint = write_model(GRIFFIN, tmp_path)
    with pytest.raises(CheckpointError, match=r"ONNX Runtime cannot load the model: .*NoSuchOperator") as caught:
        build_engine(checkpoint, "float32", 1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(weights, tmp_path: Path, monkeypatch):
    checkpoint = write_model(GRIFFIN, tmp_path, weights)
    monkeypatch.setattr(memory, "available_bytes", lambda: 90_000_000)
    monkeypatch.setattr(checkpoint, "verify", lambda: pytest.fail("the files were read"))
    monkeypatch.setattr(checkpoint, "tensor", lambda name: pytest.fail(f"{name} was read"))
    with pytest.raises(NotEnoughMemoryError, match=r"needs 96 MB of memory; 90 MB are available"):
        build_engine(checkpoint, "float32", 1)


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "levels"),
    [
        ("x86_64", "flags : fpu avx2 avx512_vnni", 127),
        ("AMD64", "flags : avx2 avx_vnni", 127),
        ("x86_64", "flags : fpu avx2", 63),
        ("x86_64", None, 63),
        ("aarch64", None, 127),
        ("arm64", "", 127),
    ],
)
def test_activations_have_half_the_levels_where_products_would_saturate(machine, cpuinfo, levels, monkeypatch):
    def read_text(path: Path, **options: str) -> str:
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert activation_levels() == levels


@pytest.mark.parametrize("levels", [63, 127])
def test_either_number_of_levels_equals_torch(levels: int, tmp_path: Path):
    """Of int8 channels; 127 only where this processor's products do not saturate."""
    if levels > activation_levels():
        pytest.skip("this processor adds pairs of products in 16 bits")
    checkpoint = write_model(GRIFFIN, tmp_path, "int8")
    session = new_session(build_graph(checkpoint, "float32", levels), checkpoint, 1)
    reference = build_torch_engine(GRIFFIN, checkpoint.tensor, "float32", "float32", "cpu")
    pair = Engines(checkpoint, OnnxEngine(checkpoint, session, "float32"), reference, "int8")
    tokens, here = pair.tokens(2, 40), pair.executor(2)
    logits = here.prefill([0, 1], tokens, None, "all")
    assert_agree(logits, pair.torch_executor(2).prefill([0, 1], tokens, None, "all"), *pair.row_against_torch)
    assert_agree(read(pair.executor(2), [0, 1], tokens, [1] * 40), logits, *pair.row)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("levels", [63, 127])
def test_largest_activations_times_largest_weights_are_exact(levels: int, sign: float, tmp_path: Path):
    """Every product of a sum is the largest there is, so that pairs of them pass 16 bits if any do."""
    if levels > activation_levels():
        pytest.skip("this processor adds pairs of products in 16 bits")
    config, name = config_of("Hawk", 1, width=64), "layers.0.mlp.up.weight"
    tensors = dict(initial_tensors(config, 0))
    tensors[name] = np.full_like(tensors[name], sign)
    write_checkpoint(config, tensors.items(), tmp_path / "model", "griffinlm")
    write_quantized(open_checkpoint(tmp_path / "model"), RECIPES["int8"], tmp_path / "int8")
    checkpoint, graph = open_checkpoint(tmp_path / "int8"), Graph()
    product = Linears(graph, checkpoint, levels).product(graph.input("x", "float32", ["rows", 64]), name)
    graph.output("y", product, "float32", ["rows", config.mlp_hidden])
    built = graph.build("product")
    numbers = [node for node in built.proto.graph.initializer if node.data_type == onnx.TensorProto.UINT8]
    largest = int(onnx.numpy_helper.to_array(numbers[0])) + levels
    assert largest <= (127 if levels == 63 else 255)
    x = np.array([[3.0] * 64, [-0.01] * 64], np.float32)
    (found,) = new_session(built, checkpoint, 1).run(None, {"x": x})
    np.testing.assert_allclose(found, x.sum(axis=1, keepdims=True) * np.full((2, 17), sign), rtol=1e-6)
