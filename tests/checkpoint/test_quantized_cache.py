"""Quantized copies are made once; whatever stands in the way of the cache, there is a whole copy or one error."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from griffinlm.checkpoint import Checkpoint, CheckpointError, open_checkpoint, quantized_copy, write_checkpoint
from griffinlm.checkpoint import quantized_cache as cache
from griffinlm.checkpoint.store import SINGLE_FILE
from griffinlm.quantization import RECIPES

from .models import GRIFFINS, random_tensors

CONFIG = GRIFFINS["ends in recurrent"]


@pytest.fixture
def original(tmp_path: Path) -> Checkpoint:
    write_checkpoint(CONFIG, random_tensors(CONFIG).items(), tmp_path / "model", "griffinlm")
    return open_checkpoint(tmp_path / "model")


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies are kept; the system's temporary directory is inside the test's own too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "griffinlm" / "quantized"


def test_a_second_call_finds_the_copy_of_the_first(original: Checkpoint, places: Path, monkeypatch):
    first = quantized_copy(original, RECIPES["int4"])
    assert first.path.parent == places
    monkeypatch.setattr(cache, "write_quantized", None)
    second = quantized_copy(original, RECIPES["int4"])
    assert (second.path, second.digest()) == (first.path, first.digest())


def test_the_tokenizer_of_a_copy_is_the_originals_own(original: Checkpoint, places: Path):
    assert quantized_copy(original, RECIPES["int4"]).tokenizer_directory is None
    (original.path / "tokenizer.json").write_text("{}", encoding="utf-8")
    found = quantized_copy(open_checkpoint(original.path), RECIPES["int4"])
    assert (found.path.parent, found.tokenizer_directory) == (places, original.path)


def test_every_recipe_has_a_copy_of_its_own(original: Checkpoint):
    copies = [quantized_copy(original, recipe) for recipe in RECIPES.values()]
    assert len({copy.path for copy in copies}) == len(copies)


@pytest.mark.parametrize("num_bytes_kept", [0, 100, -1])
def test_a_damaged_copy_is_made_again(original: Checkpoint, num_bytes_kept: int):
    copy = quantized_copy(original, RECIPES["int4"])
    digest, file = copy.digest(), copy.path / SINGLE_FILE
    content = file.read_bytes()
    file.write_bytes(content[:num_bytes_kept])
    assert quantized_copy(original, RECIPES["int4"]).digest() == digest
    assert file.read_bytes() == content


def test_a_cache_that_cannot_be_written_gives_a_temporary_copy(original: Checkpoint, tmp_path: Path):
    digest = quantized_copy(original, RECIPES["int4"]).digest()
    (tmp_path / "cache").rename(tmp_path / "old")
    (tmp_path / "cache").write_text("no directory")
    copy = quantized_copy(original, RECIPES["int4"])
    assert copy.path.is_relative_to(tmp_path / "temporary")
    assert copy.digest() == digest


def test_a_cache_that_nobody_can_look_into_gives_a_temporary_copy(original: Checkpoint, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("a" * 300)))
    assert quantized_copy(original, RECIPES["int4"]).path.is_relative_to(tmp_path / "temporary")


def test_without_a_home_directory_the_copy_is_temporary(original: Checkpoint, tmp_path: Path, monkeypatch):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    assert quantized_copy(original, RECIPES["int4"]).path.is_relative_to(tmp_path / "temporary")


def test_a_temporary_copy_lives_as_long_as_its_checkpoint(original: Checkpoint, tmp_path: Path):
    (tmp_path / "cache").write_text("no directory")
    copy = quantized_copy(original, RECIPES["int4"])
    path = copy.path
    assert path.is_dir()
    del copy
    assert not path.exists()


def test_a_large_model_is_not_quantized_in_passing(original: Checkpoint, monkeypatch):
    monkeypatch.setattr(cache, "LARGEST_PARAMETERS", CONFIG.num_parameters - 1)
    with pytest.raises(CheckpointError, match="are quantized on load") as caught:
        quantized_copy(original, RECIPES["int4"])
    assert str(caught.value.hint).startswith("griffin quantize")


def test_a_damaged_source_is_one_error_and_leaves_nothing(original: Checkpoint, tmp_path: Path, places: Path):
    tensors = load_file(original.path / SINGLE_FILE)
    tensors["layers.4.mlp.down.weight"][0, 0] = np.nan
    save_file(tensors, original.path / SINGLE_FILE)
    with pytest.raises(CheckpointError, match="holds NaN"):
        quantized_copy(open_checkpoint(original.path), RECIPES["int4"])
    assert not places.exists() or not list(places.iterdir())
    assert not list((tmp_path / "temporary").iterdir())
