"""A quantized directory: what is written is read, damage is told in one line, and nothing half-written appears."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from griffinlm.checkpoint import (
    Checkpoint,
    CheckpointError,
    open_checkpoint,
    write_checkpoint,
    write_quantized,
    write_random_quantized,
)
from griffinlm.checkpoint.initial import initial_tensors, initial_variance
from griffinlm.checkpoint.store import INDEX_FILE, SINGLE_FILE
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.quantization import FLOAT32, RECIPES, Format, QuantizationError, Recipe, dequantize
from griffinlm.quantization.recipe import from_matrix, matrix_shape

from .models import GEMMA, GRIFFINS, Tensors, random_tensors

CONFIG = GRIFFINS["ends in recurrent"]
SOME_RECIPES = {
    "int4": RECIPES["int4"],
    "int8": RECIPES["int8"],
    "mixed": Recipe(Format(4, 32), (("*.query.weight", FLOAT32), ("*.down.weight", Format(8)))),
}
INPUT_GATE = "layers.0.recurrent.rg_lru.input_gate.weight"


def source(directory: Path, config: ModelConfig = CONFIG, dtype: str = "float32") -> Checkpoint:
    write_checkpoint(config, random_tensors(config, dtype).items(), directory, "griffinlm")
    return open_checkpoint(directory)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return source(tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def quantized(original: Checkpoint, tmp_path: Path) -> Path:
    """A quantized directory to damage."""
    write_quantized(original, RECIPES["int4"], tmp_path / "quantized")
    return tmp_path / "quantized"


def refusal(path: Path) -> CheckpointError:
    """The error of opening, verifying and reading everything, which must be one printable line."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return caught.value


def read_all(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    checkpoint.verify()
    checkpoint.digest()
    for _ in checkpoint.tensors():
        pass


def change_record(directory: Path, change: Callable[[dict], object]) -> None:
    """Changes the field `quantization` of config.json."""
    fields = json.loads((directory / "config.json").read_text())
    change(fields["quantization"])
    (directory / "config.json").write_text(json.dumps(fields))


def change_tensors(directory: Path, change: Callable[[Tensors], object]) -> None:
    """Changes the tensors; the checksum is then wrong, which only `verify` looks at."""
    tensors = load_file(directory / SINGLE_FILE)
    change(tensors)
    save_file(tensors, directory / SINGLE_FILE)


@pytest.mark.parametrize("config", [*GRIFFINS.values(), GEMMA], ids=[*GRIFFINS, "gemma"])
@pytest.mark.parametrize("recipe", SOME_RECIPES.values(), ids=SOME_RECIPES)
def test_a_parameter_read_is_the_stored_one_dequantized(recipe: Recipe, config: ModelConfig, tmp_path: Path):
    recipe = Recipe(recipe.default, tuple(o for o in recipe.overrides if "query" not in o[0] or config.attention))
    original = source(tmp_path / "original", config)
    reports = {report.parameter: report for report in write_quantized(original, recipe, tmp_path / "quantized")}
    there = open_checkpoint(tmp_path / "quantized")
    there.verify()
    assert (there.format, there.config) == ("griffinlm", config)
    stored = load_file(tmp_path / "quantized" / SINGLE_FILE)
    formats = recipe.formats(config)
    assert reports.keys() == formats.keys()
    for name, values in original.tensors():
        found, format = there.tensor(name), formats.get(name, FLOAT32)
        assert (found.dtype, found.shape, found.flags.c_contiguous) == (np.float32, values.shape, True)
        expected = values
        if format.is_quantized:
            matrix = dequantize(stored[name], stored[f"{name}.scales"], format, matrix_shape(values.shape)[1])
            expected = from_matrix(matrix, values.shape)
            error = np.linalg.norm(found - values) / np.linalg.norm(values)
            assert 0 < error < 0.13
            num_bytes = stored[name].nbytes + stored[f"{name}.scales"].nbytes
            assert reports[name] == (name, format.name, num_bytes, pytest.approx(error, rel=1e-3))
        np.testing.assert_array_equal(found, expected)
    assert there.num_bytes == sum(values.nbytes for values in stored.values())
    assert set(there.types) == {"float32", *(format.name for format in formats.values())}


def test_the_record_says_how_it_was_made(original: Checkpoint, tmp_path: Path):
    assert original.quantization is None
    original.verify()
    recipe = SOME_RECIPES["mixed"]
    write_quantized(original, recipe, tmp_path / "quantized")
    record = open_checkpoint(tmp_path / "quantized").quantization
    assert record is not None
    assert (record.recipe, record.method, record.source_digest) == (recipe, "clip", original.digest())
    assert list(record.checksums) == [SINGLE_FILE]


def test_every_container_of_the_same_weights_is_quantized_alike(original: Checkpoint, tmp_path: Path):
    write_checkpoint(CONFIG, original.tensors(), tmp_path / "hf", "huggingface", shard_bytes=10_000)
    write_quantized(original, RECIPES["int4"], tmp_path / "one")
    write_quantized(open_checkpoint(tmp_path / "hf"), RECIPES["int4"], tmp_path / "two", shard_bytes=3000)
    one, two = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "two")
    assert (tmp_path / "two" / INDEX_FILE).exists()
    two.verify()
    assert one.digest() == two.digest()
    assert one.digest() != original.digest()
    assert one.quantization is not None
    assert two.quantization is not None
    assert one.quantization.source_digest == two.quantization.source_digest == original.digest()


def test_the_digest_is_of_the_stored_bytes_and_the_recipe(quantized: Path):
    digest = open_checkpoint(quantized).digest()
    change_record(quantized, lambda record: record["recipe"].update(overrides=[["embedding.*", "int4-block128"]]))
    renamed = open_checkpoint(quantized).digest()

    def flip(tensors: Tensors) -> None:
        tensors[INPUT_GATE][0, 0, 0] ^= 1

    change_tensors(quantized, flip)
    assert len({digest, renamed, open_checkpoint(quantized).digest()}) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("format", ["griffinlm", "huggingface"])
def test_bytes_lie_where_stored_says(format: str, dtype: str, tmp_path: Path):
    tensors = random_tensors(CONFIG, dtype)
    write_checkpoint(CONFIG, tensors.items(), tmp_path / "model", format, shard_bytes=10_000)  # pyright: ignore
    checkpoint = open_checkpoint(tmp_path / "model")
    moved = []
    for name, values in tensors.items():
        place = checkpoint.stored(name)
        if place is None:
            moved.append(name)
            continue
        assert (place.dtype, place.shape) == (dtype, values.shape)
        assert place.file.read_bytes()[place.offset :][: values.nbytes] == values.tobytes()
        assert place.mapped().dtype == values.dtype
        assert place.mapped().tobytes() == values.tobytes()
    convolutions = [name for name in tensors if name.endswith("conv.weight")]
    assert moved == ([] if format == "griffinlm" else convolutions)
    assert checkpoint.stored("embedding.weight.scales") is checkpoint.stored("nothing") is None


def test_bytes_of_a_quantized_parameter_lie_where_stored_says(quantized: Path):
    checkpoint, stored = open_checkpoint(quantized), load_file(quantized / SINGLE_FILE)
    for name, values in stored.items():
        place = checkpoint.stored(name)
        assert place is not None
        assert place.offset % values.itemsize == 0
        assert (place.dtype, place.shape) == (values.dtype.name, values.shape)
        np.testing.assert_array_equal(place.mapped(), values)
    assert checkpoint.stored("layers.0.mlp.up.bias.scales") is None


@pytest.mark.parametrize("format", ["deepmind"])
def test_other_containers_have_no_place_of_bytes(format: str, tmp_path: Path):
    pytest.importorskip("torch")
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", format)  # pyright: ignore
    assert open_checkpoint(tmp_path / "model").stored("embedding.weight") is None


def test_a_quantized_checkpoint_is_written_as_floats_again(quantized: Path, tmp_path: Path):
    there = open_checkpoint(quantized)
    write_checkpoint(there.config, there.tensors(), tmp_path / "floats", "huggingface")
    back = open_checkpoint(tmp_path / "floats")
    assert back.types == ("float32",)
    for name, values in there.tensors():
        np.testing.assert_array_equal(back.tensor(name), values)


def test_a_quantized_checkpoint_is_not_quantized_again(quantized: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"quantized already \(int4-block128\)"):
        write_quantized(open_checkpoint(quantized), RECIPES["int8"], tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_energy_weights_the_error(original: Checkpoint, tmp_path: Path):
    recipe = Recipe(Format(4, 32))
    random = np.random.default_rng(0)
    shapes = {name: CONFIG.parameter_shapes()[name] for name in recipe.formats(CONFIG)}
    energy = {name: random.exponential(size=s[1] * (s[0] if len(s) == 3 else 1)) ** 3 for name, s in shapes.items()}
    write_quantized(original, recipe, tmp_path / "plain")
    write_quantized(original, recipe, tmp_path / "aware", energy)
    plain, aware = open_checkpoint(tmp_path / "plain"), open_checkpoint(tmp_path / "aware")
    assert aware.quantization is not None
    assert aware.quantization.method == "activation"
    for name, shape in shapes.items():
        weights = energy[name].reshape(shape[0], -1, 1) if len(shape) == 3 else energy[name]
        truth = original.tensor(name)
        errors = [float(((c.tensor(name) - truth) ** 2 * weights).sum()) for c in (plain, aware)]
        assert errors[1] < errors[0], name
    with pytest.raises(QuantizationError, match=r"no input energy for 1 parameters, the first is embedding\.weight"):
        write_quantized(original, recipe, tmp_path / "x", {n: e for n, e in energy.items() if n != "embedding.weight"})
    with pytest.raises(QuantizationError, match=rf"^{re.escape(INPUT_GATE)}: the input energy has shape \[3\]"):
        write_quantized(original, recipe, tmp_path / "x", {**energy, INPUT_GATE: np.ones(3)})
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "aware"}


@pytest.mark.parametrize("recipe", SOME_RECIPES.values(), ids=SOME_RECIPES)
def test_random_weights_have_the_variance_of_initial_ones(recipe: Recipe, tmp_path: Path):
    write_random_quantized(CONFIG, recipe, tmp_path / "a", 3)
    write_random_quantized(CONFIG, recipe, tmp_path / "b", 3)
    write_random_quantized(CONFIG, recipe, tmp_path / "c", 4)
    there = open_checkpoint(tmp_path / "a")
    there.verify()
    assert there.quantization is not None
    assert (there.quantization.method, there.quantization.source_digest) == ("random", None)
    assert there.digest() == open_checkpoint(tmp_path / "b").digest() != open_checkpoint(tmp_path / "c").digest()
    formats = recipe.formats(CONFIG)
    for name, values in initial_tensors(CONFIG, 3):
        if formats.get(name, FLOAT32).is_quantized:
            found = float(np.square(there.tensor(name)).mean())
            assert found == pytest.approx(initial_variance(CONFIG, name, values.shape), rel=0.2)
        else:
            np.testing.assert_array_equal(there.tensor(name), values)


def test_all_wrong_tensors_are_found_at_once(quantized: Path):
    def change(tensors: Tensors) -> None:
        del tensors["embedding.weight.scales"]
        tensors["layers.0.mlp.up.bias.scales"] = np.zeros((2, 3), np.float32)
        tensors["layers.1.mlp.up.weight"] = tensors["layers.1.mlp.up.weight"].astype(np.int8)
        tensors["final_norm.scale"] = tensors["final_norm.scale"].astype(ml_dtypes.bfloat16)
        tensors[INPUT_GATE] = tensors[INPUT_GATE][1:]

    change_tensors(quantized, change)
    assert sorted(refusal(quantized).faults) == [
        "embedding.weight.scales is missing, expected [37, 1] float32",
        "final_norm.scale is [24] bfloat16, expected [24] float32",
        "layers.0.mlp.up.bias.scales is unexpected, found [2, 3] float32",
        f"{INPUT_GATE} is [39, 1, 16] uint8, expected [40, 1, 16] uint8",
        "layers.1.mlp.up.weight is [28, 1, 16] int8, expected [28, 1, 16] uint8",
    ]


@pytest.mark.parametrize("format", ["int8-block128", "int4-block16", "float32", "int8-channel"])
def test_a_recipe_that_is_not_that_of_the_tensors_is_refused(quantized: Path, format: str):
    change_record(quantized, lambda record: record["recipe"].update(default=format))
    assert len(refusal(quantized).faults) >= 10


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_refused_by_name(quantized: Path, value: float):
    change_tensors(quantized, lambda tensors: tensors["embedding.weight.scales"].__setitem__((3, 0), value))
    checkpoint = open_checkpoint(quantized)
    for read in (lambda: checkpoint.tensor("embedding.weight"), checkpoint.digest):
        with pytest.raises(CheckpointError, match=r"embedding\.weight\.scales holds NaN or infinity"):
            read()


def test_one_changed_bit_is_found_by_verifying(quantized: Path):
    file = quantized / SINGLE_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "model.safetensors is damaged: its checksum differs from that in config.json" in str(refusal(quantized))


@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda content: b""])
def test_a_truncated_or_extended_file_is_refused(quantized: Path, change: Callable[[bytes], bytes]):
    file = quantized / SINGLE_FILE
    file.write_bytes(change(file.read_bytes()))
    assert SINGLE_FILE in str(refusal(quantized))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 3),
        ("format_version", True),
        ("method", "magic"),
        ("method", ["clip"]),
        ("source_digest", None),
        ("source_digest", "abc"),
        ("checksums", {}),
        ("checksums", []),
        ("checksums", {"../model.safetensors": "0" * 64}),
        ("checksums", {"model.safetensors": "0" * 64, "more": "0" * 64}),
        ("checksums", {"model.safetensors": 5}),
        ("checksums", {"model.safetensors": "0" * 64}),
        ("recipe", None),
        ("recipe", {"default": "int4-block128", "overrides": [["nothing.*", "float32"]]}),
        ("more", 1),
    ],
)
def test_a_damaged_record_is_refused(quantized: Path, field: str, value: object):
    change_record(quantized, lambda record: record.update({field: value}))
    assert "config.json" in str(refusal(quantized))


def test_version_1_is_read_without_channels(quantized: Path):
    change_record(quantized, lambda record: record.update(format_version=1))
    open_checkpoint(quantized).verify()


def test_channels_of_version_1_are_refused(quantized: Path):
    change_record(quantized, lambda record: record.update(format_version=1))
    change_record(quantized, lambda record: record["recipe"].update(overrides=[["*.up.weight", "int8-channel"]]))
    assert "int8-channel is stored otherwise" in str(refusal(quantized))


@pytest.mark.parametrize("field", ["format_version", "method", "source_digest", "checksums", "recipe"])
def test_a_record_without_a_field_is_refused(quantized: Path, field: str):
    change_record(quantized, lambda record: record.pop(field))
    assert field in str(refusal(quantized))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_give_a_checkpoint_or_one_error(mutable: dict[str, bytes], tmp_path: Path, data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(mutable)))
    content = bytearray(mutable[name])
    last = min(len(content), data.draw(st.sampled_from([64, 4096, len(content)]))) - 1
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, last))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, last)) :]
    for other, sound in mutable.items():
        (tmp_path / other).write_bytes(content if other == name else sound)
    is_same = content == mutable[name]
    try:
        read_all(tmp_path)
    except GriffinError:
        assert not is_same
    else:
        assert is_same or not name.endswith(".safetensors")


@pytest.fixture(scope="module")
def mutable(original: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a quantized checkpoint in shards."""
    directory = tmp_path_factory.mktemp("mutable") / "model"
    write_quantized(original, SOME_RECIPES["mixed"], directory, shard_bytes=4000)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


WRITER = """
import sys
from griffinlm.checkpoint import CheckpointError, open_checkpoint, write_quantized
from griffinlm.quantization import RECIPES

checkpoint = open_checkpoint(sys.argv[1])
tensors = checkpoint.tensors

def paused():
    for index, pair in enumerate(tensors()):
        if index == 20 and {pause}:
            print("half", flush=True)
            sys.stdin.read()
        yield pair

checkpoint.tensors = paused
{limit}
try:
    write_quantized(checkpoint, RECIPES["int4"], sys.argv[2], shard_bytes=2000)
except CheckpointError as error:
    print(error, end="")
"""


def make_old(directory: Path) -> None:
    hour_ago = time.time() - 3600
    os.utime(directory, (hour_ago, hour_ago))


def test_a_killed_writer_leaves_a_partial_directory_that_the_next_one_removes(original: Checkpoint, tmp_path: Path):
    pytest.importorskip("fcntl", reason="needs locks on directories")
    destination = tmp_path / "model"
    program = WRITER.format(pause=True, limit="")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(original.path), str(destination)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        (partial,) = tmp_path.iterdir()
        assert re.fullmatch(r"\.model\.[0-9a-f]{32}\.partial", partial.name)
        assert any(partial.glob("*.safetensors")), "the writer should be half way"
        make_old(partial)
        write_quantized(original, RECIPES["int8"], tmp_path / "model")
        assert partial.exists(), "it belongs to a process that runs"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    write_quantized(original, RECIPES["int8"], tmp_path / "model2")
    assert partial.exists(), "it is of another destination"
    (tmp_path / "model").rename(tmp_path / "moved")
    fresh = tmp_path / f".model.{'0' * 32}.partial"
    fresh.mkdir()
    write_quantized(original, RECIPES["int8"], tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model2", "moved", fresh.name}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_refused_write_is_one_line_and_cleaned_up(original: Checkpoint, tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    program = WRITER.format(pause=False, limit=limit)
    done = subprocess.run(
        [sys.executable, "-c", program, str(original.path), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"cannot write {tmp_path / 'model'}: ")
    assert "\n" not in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path):
    checkpoint = source(tmp_path / "original")
    tensors = load_file(tmp_path / "original" / SINGLE_FILE)
    tensors["layers.4.mlp.down.weight"][0, 0] = np.nan
    save_file(tensors, tmp_path / "original" / SINGLE_FILE)
    checkpoint = open_checkpoint(tmp_path / "original")
    with pytest.raises(CheckpointError, match=r"layers\.4\.mlp\.down\.weight holds NaN"):
        write_quantized(checkpoint, RECIPES["int4"], tmp_path / "quantized", shard_bytes=1000)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


def test_memory_is_one_tensor_and_one_shard(tmp_path: Path):
    """A model of 60 MB, of which the embedding is 16 MB."""
    config = ModelConfig(
        **{**GRIFFINS["all recurrent"].__dict__, "vocab_size": 1 << 16, "width": 64, "num_layers": 40},
    )
    write_random_quantized(config, Recipe(FLOAT32), tmp_path / "floats", 0)
    there = open_checkpoint(tmp_path / "floats")
    write_checkpoint(config, there.tensors(), tmp_path / "original", "griffinlm", shard_bytes=1 << 20)
    original = open_checkpoint(tmp_path / "original")
    embedding_bytes = 4 * config.num_embedding_parameters
    tracemalloc.start()
    try:
        write_quantized(original, RECIPES["int4"], tmp_path / "quantized", shard_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * embedding_bytes + (8 << 20)
