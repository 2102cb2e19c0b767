"""ours -> another format -> ours gives back every bit, and the same digest from every container."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.checkpoint.names import entries
from griffinlm.checkpoint.write import WritableFormat
from griffinlm.config import ModelConfig

from .models import GEMMA, GRIFFINS, TYPES, assert_same_bits, random_tensors

CASES = [(format, config) for format in ("griffinlm", "huggingface", "deepmind") for config in GRIFFINS.values()] + [
    ("griffinlm", GEMMA),
    ("huggingface", GEMMA),
]
PRESET_CASES = [
    ("griffinlm", "tiny-griffin"),
    ("griffinlm", "tiny-hawk"),
    ("deepmind", "tiny-hawk"),
    ("griffinlm", "tiny-gemma"),
    ("huggingface", "tiny-gemma"),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("format", "config"), CASES)
def test_written_and_read_is_bit_equal(format: WritableFormat, config: ModelConfig, dtype: str, tmp_path: Path):
    if format == "deepmind":
        pytest.importorskip("torch")
    tensors = random_tensors(config, dtype)
    write_checkpoint(config, tensors.items(), tmp_path / "there", format)
    there = open_checkpoint(tmp_path / "there")
    assert there.format == format
    assert there.config == config
    assert there.types == (dtype,)
    write_checkpoint(there.config, there.tensors(), tmp_path / "back", "griffinlm")
    back = open_checkpoint(tmp_path / "back")
    assert_same_bits(back, tensors)
    assert back.digest() == there.digest()


@pytest.mark.parametrize(("format", "preset"), PRESET_CASES)
def test_presets_come_back(format: WritableFormat, preset: str, tmp_path: Path):
    if format == "deepmind":
        pytest.importorskip("torch")
    config = ModelConfig.preset(preset)
    tensors = random_tensors(config, "bfloat16")
    write_checkpoint(config, tensors.items(), tmp_path / "there", format)
    there = open_checkpoint(tmp_path / "there")
    assert there.config == config
    assert_same_bits(there, tensors)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("config", GRIFFINS.values(), ids=GRIFFINS)
def test_through_the_names_of_flax_is_bit_equal(config: ModelConfig, dtype: str):
    tensors = random_tensors(config, dtype)
    flax = {e.theirs: e.layout.pack(*(tensors[name] for name in e.ours)) for e in entries("flax", config)}
    back = {
        name: part
        for entry in entries("flax", config)
        for name, part in zip(entry.ours, entry.layout.unpack(flax[entry.theirs]), strict=True)
    }
    assert back.keys() == tensors.keys()
    for name, values in tensors.items():
        assert back[name].tobytes() == values.tobytes(), name


def test_flax_stores_every_kernel_transposed_even_the_square_ones():
    config = GRIFFINS["square recurrent block"]
    tensors = random_tensors(config)
    torch_tensors = {e.theirs: e.layout.pack(*(tensors[n] for n in e.ours)) for e in entries("deepmind", config)}
    for entry in entries("flax", config):
        values = entry.layout.pack(*(tensors[n] for n in entry.ours))
        if entry.theirs.endswith(".kernel"):
            original = torch_tensors[entry.theirs.removesuffix("kernel") + "weight"]
            np.testing.assert_array_equal(values, original.T)
        else:
            np.testing.assert_array_equal(values, torch_tensors[entry.theirs])


def test_shards_hold_the_same_weights_as_one_file(tmp_path: Path):
    config = GRIFFINS["ends in recurrent"]
    tensors = random_tensors(config, "bfloat16")
    write_checkpoint(config, tensors.items(), tmp_path / "one", "huggingface")
    write_checkpoint(config, tensors.items(), tmp_path / "many", "huggingface", shard_bytes=10_000)
    shards = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert_same_bits(open_checkpoint(tmp_path / "many"), tensors)
    assert open_checkpoint(tmp_path / "many").digest() == open_checkpoint(tmp_path / "one").digest()


def test_the_digest_sees_one_bit_a_type_and_a_name(tmp_path: Path):
    config = GRIFFINS["all recurrent"]
    tensors = random_tensors(config)
    changed = dict(tensors)
    changed["final_norm.scale"] = np.nextafter(tensors["final_norm.scale"], np.float32(9))
    swapped = dict(tensors)
    swapped["layers.0.mlp.gate.bias"] = tensors["layers.0.mlp.up.bias"]
    swapped["layers.0.mlp.up.bias"] = tensors["layers.0.mlp.gate.bias"]
    digests = set()
    for name, values in {"plain": tensors, "changed": changed, "swapped": swapped}.items():
        write_checkpoint(config, values.items(), tmp_path / name, "griffinlm")
        digests.add(open_checkpoint(tmp_path / name).digest())
    write_checkpoint(config, tensors.items(), tmp_path / "cast", "griffinlm", dtype="bfloat16")
    digests.add(open_checkpoint(tmp_path / "cast").digest())
    assert len(digests) == 4


def test_a_cast_happens_only_when_asked(tmp_path: Path):
    config = GRIFFINS["all recurrent"]
    tensors = random_tensors(config)
    mixed = {**tensors, "final_norm.scale": tensors["final_norm.scale"].astype(ml_dtypes.bfloat16)}
    write_checkpoint(config, mixed.items(), tmp_path / "mixed", "huggingface")
    assert_same_bits(open_checkpoint(tmp_path / "mixed"), mixed)
    write_checkpoint(config, mixed.items(), tmp_path / "cast", "huggingface", dtype="float16")
    assert open_checkpoint(tmp_path / "cast").types == ("float16",)
