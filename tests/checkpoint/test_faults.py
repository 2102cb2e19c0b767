"""Every fault of a checkpoint is one CheckpointError of one line that names it."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from griffinlm.checkpoint import CheckpointError, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.names import TIED_HEAD
from griffinlm.checkpoint.store import INDEX_FILE, SINGLE_FILE
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError

from .models import GRIFFINS, Tensors, random_tensors

CONFIG = GRIFFINS["ends in attention"]
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", "huggingface")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", "huggingface", shard_bytes=10_000)
    return tmp_path / "model"


def refusal(path: Path, config: ModelConfig | None = None) -> CheckpointError:
    """The error of opening and reading everything, which must be one printable line."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, config).digest()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return caught.value


def change_tensors(directory: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(directory / SINGLE_FILE)
    change(tensors)
    save_file(tensors, directory / SINGLE_FILE)


def change_json(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_all_missing_unexpected_and_misshapen_tensors_are_found_at_once(directory: Path):
    def change(tensors: Tensors) -> None:
        del tensors["model.layers.0.temporal_block.linear_x.weight"]
        del tensors["model.layers.2.temporal_block.o_proj.bias"]
        tensors["model.layers.9.extra"] = np.zeros((2, 3), np.float16)
        tensors["model.final_norm.weight"] = np.zeros(25, np.float32)
        tensors["model.layers.1.mlp_block.up_proj.bias"] = np.zeros(28, np.int64)

    change_tensors(directory, change)
    error = refusal(directory)
    assert error.faults == [
        "model.layers.0.temporal_block.linear_x.weight is missing, expected [40, 24] float32, bfloat16 or float16",
        "model.layers.2.temporal_block.o_proj.bias is missing, expected [24] float32, bfloat16 or float16",
        "model.layers.9.extra is unexpected, found [2, 3] float16",
        "model.final_norm.weight is [25] float32, expected [24] float32, bfloat16 or float16",
        "model.layers.1.mlp_block.up_proj.bias is [28] int64, expected [28] float32, bfloat16 or float16",
    ]
    assert "has 5 faults" in str(error)
    assert str(error).endswith("; and 2 more")


def test_a_tied_head_that_is_equal_is_read(directory: Path):
    digest = open_checkpoint(directory).digest()
    change_tensors(directory, lambda tensors: tensors.update({TIED_HEAD: tensors[EMBEDDING].copy()}))
    assert open_checkpoint(directory).digest() == digest


def test_a_tied_head_that_differs_is_refused(directory: Path):
    change_tensors(directory, lambda tensors: tensors.update({TIED_HEAD: tensors[EMBEDDING] * 2}))
    assert "lm_head.weight differs from model.embed_tokens.weight" in str(refusal(directory))


def test_a_tied_head_of_another_shape_is_refused(directory: Path):
    change_tensors(directory, lambda tensors: tensors.update({TIED_HEAD: tensors[EMBEDDING][1:].copy()}))
    assert "lm_head.weight is [36, 24] float32, expected [37, 24]" in str(refusal(directory))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_value_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float, dtype: str):
    tensors = random_tensors(CONFIG, dtype)
    write_checkpoint(CONFIG, tensors.items(), tmp_path / "model", "huggingface")
    name = "model.layers.1.mlp_block.down_proj.weight"
    change_tensors(tmp_path / "model", lambda tensors: tensors[name].__setitem__((3, 5), value))
    assert f"{name} holds NaN or infinity" in str(refusal(tmp_path / "model"))


def test_a_truncated_file_is_refused(directory: Path):
    file = directory / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-1])
    assert SINGLE_FILE in str(refusal(directory))


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a":1}\n'])
def test_a_bad_header_is_refused(directory: Path, content: bytes):
    (directory / SINGLE_FILE).write_bytes(content)
    assert SINGLE_FILE in str(refusal(directory))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model_type": 1e999}', b'"text"', b"9" * 5000]
)
def test_a_bad_config_file_is_refused(directory: Path, content: bytes):
    (directory / "config.json").write_bytes(content)
    assert "config.json" in str(refusal(directory))


def test_a_file_that_changes_after_opening_is_refused(directory: Path):
    checkpoint = open_checkpoint(directory)
    change_tensors(directory, lambda tensors: tensors.update({EMBEDDING: 2 * tensors[EMBEDDING]}))
    with pytest.raises(CheckpointError, match="has changed since it was opened") as caught:
        checkpoint.digest()
    assert caught.value.hint is not None


def test_the_working_directory_may_change_after_opening(directory: Path, monkeypatch: pytest.MonkeyPatch):
    digest = open_checkpoint(directory).digest()
    monkeypatch.chdir(directory.parent)
    checkpoint = open_checkpoint(directory.name)
    monkeypatch.chdir(directory)
    assert checkpoint.digest() == digest


def test_an_unknown_model_type_lists_what_is_supported(directory: Path):
    change_json(directory / "config.json", model_type="llama")
    assert "model_type is 'llama'; supported are griffinlm, recurrent_gemma, gemma" in str(refusal(directory))
    (directory / "config.json").write_text("{}")
    assert "model_type is missing; supported are griffinlm" in str(refusal(directory))


@pytest.mark.parametrize("version", [None, 0, 2, True, "1"])
def test_another_format_version_is_refused(tmp_path: Path, version: object):
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", "griffinlm")
    change_json(tmp_path / "model" / "config.json", format_version=version)
    assert "format_version" in str(refusal(tmp_path / "model"))


@pytest.mark.parametrize(("field", "value"), [("num_layers", 10**9), ("norm_epsilon", 10**400), ("width", -1)])
def test_a_size_that_no_model_has_is_refused(tmp_path: Path, field: str, value: int):
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", "griffinlm")
    change_json(tmp_path / "model" / "config.json", **{field: value})
    assert "config.json" in str(refusal(tmp_path / "model"))


def test_a_missing_shard_is_refused(sharded: Path):
    shards = sorted(sharded.glob("*.safetensors"))
    shards[1].unlink()
    assert f"shard {shards[1].name} is missing" in str(refusal(sharded))


@pytest.mark.parametrize(
    "shard", ["../model/x.safetensors", "/etc/passwd", "a/b.safetensors", "x\n.safetensors", "", "x"]
)
def test_an_index_that_points_elsewhere_is_refused(sharded: Path, shard: str):
    change_json(sharded / INDEX_FILE, weight_map={EMBEDDING: shard})
    assert "is no plain name of a .safetensors file" in str(refusal(sharded))


@pytest.mark.parametrize("placed", [None, [], {}, {"a": 1}, "text"])
def test_an_index_without_a_table_is_refused(sharded: Path, placed: object):
    change_json(sharded / INDEX_FILE, weight_map=placed)
    assert "weight_map" in str(refusal(sharded))


def test_an_index_that_contradicts_its_shards_is_refused(sharded: Path):
    placed = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    first, *_, last = sorted(set(placed.values()))
    swapped = {**placed, EMBEDDING: last}
    change_json(sharded / INDEX_FILE, weight_map=swapped)
    assert f"{EMBEDDING} is not in {last}" in str(refusal(sharded))
    change_json(sharded / INDEX_FILE, weight_map={k: v for k, v in placed.items() if k != EMBEDDING})
    assert f"{EMBEDDING} is in {first}, but not in the index" in str(refusal(sharded))


def test_a_tensor_in_two_shards_is_refused(sharded: Path):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    save_file({**load_file(second), EMBEDDING: load_file(first)[EMBEDDING]}, second)
    assert f"{EMBEDDING} is both in {first.name} and in {second.name}" in str(refusal(sharded))


def test_a_name_with_control_characters_does_not_reach_the_terminal(directory: Path):
    change_tensors(directory, lambda tensors: tensors.update({"a\x1b[2J\nb": np.zeros(1, np.float32)}))
    error = refusal(directory)
    assert all(fault.isprintable() for fault in error.faults)


@pytest.mark.parametrize("name", ["absent", "bad\0name", "x" * 5000])
def test_a_path_that_is_not_there_is_refused(tmp_path: Path, name: str):
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / name)


def test_a_directory_and_a_file_without_a_checkpoint_are_refused(tmp_path: Path):
    assert "holds no model.safetensors" in str(refusal(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    assert "is no checkpoint" in str(refusal(tmp_path / "notes.txt"))


def test_a_given_configuration_must_agree_with_the_stored_one(directory: Path):
    assert open_checkpoint(directory, CONFIG).config == CONFIG
    error = refusal(directory, GRIFFINS["ends in recurrent"])
    assert "differ in num_layers" in str(error)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_a_checkpoint_or_one_error(mutable: dict[str, bytes], tmp_path: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(mutable)))
    content = bytearray(mutable[name])
    # Headers, indexes and configurations are at the front, where damage is most telling.
    last = min(len(content), data.draw(st.sampled_from([64, 4096, len(content)]))) - 1
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, last)) :]
    for other, original in mutable.items():
        (tmp_path / other).write_bytes(content if other == name else original)
    # A value may be changed without a trace; whatever leaves one must be told as an error of ours.
    with contextlib.suppress(GriffinError):
        assert open_checkpoint(tmp_path).digest()


@pytest.fixture(scope="module")
def mutable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a sharded Hugging Face checkpoint."""
    directory = tmp_path_factory.mktemp("original") / "model"
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), directory, "huggingface", shard_bytes=20_000)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_message_of_one_fault_has_no_count_of_hidden_ones(directory: Path):
    change_tensors(directory, lambda tensors: tensors.pop("model.final_norm.weight"))
    error = refusal(directory)
    assert re.search(r"has 1 fault: model\.final_norm\.weight is missing, expected \[24\]", str(error))
    assert "more" not in str(error)
