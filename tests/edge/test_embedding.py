"""Rows of the embedding, read where they lie, are those of the dequantized matrix, bit by bit."""

import os
from pathlib import Path

import numpy as np
import pytest

from griffinlm.checkpoint import CheckpointError, initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.config import ModelConfig
from griffinlm.edge.embedding import Embedding

from .models import CONFIGS, RECIPE_OF, engines, write_model

NAME = "embedding.weight"
CONFIG = CONFIGS["Griffin"]
TOKENS = np.array([[0, 22, 5], [5, 5, 1]])


def assert_rows_of(checkpoint) -> None:
    expected = checkpoint.tensor(NAME).astype(np.float32)[TOKENS] * np.float32(checkpoint.config.embedding_scale)
    found = Embedding(checkpoint, NAME).rows(TOKENS)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weights", RECIPE_OF)
def test_rows_are_those_of_the_parameter(weights: str):
    assert_rows_of(engines(CONFIG, weights).checkpoint)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rows_of_narrow_floats_are_widened(dtype: str, tmp_path: Path):
    write_checkpoint(CONFIG, initial_tensors(CONFIG, 0), tmp_path / "model", "griffinlm", dtype=dtype)
    assert_rows_of(open_checkpoint(tmp_path / "model"))


def test_rows_of_a_container_without_places(tmp_path: Path):
    pytest.importorskip("torch")
    config = ModelConfig.preset("tiny-hawk")
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "model", "deepmind")
    assert_rows_of(open_checkpoint(tmp_path / "model", config))


@pytest.mark.parametrize("weights", ["float32", "int4", "int8"])
def test_rows_stay_those_of_a_file_that_is_replaced_and_one_cut_short_is_an_error(weights: str, tmp_path: Path):
    checkpoint = write_model(CONFIG, tmp_path, weights)
    embedding = Embedding(checkpoint, NAME)
    before = embedding.rows(TOKENS)
    (file,) = checkpoint.path.glob("*.safetensors")
    other = tmp_path / "other"
    other.write_bytes(bytes(file.stat().st_size))
    kept = os.open(file, os.O_RDWR)
    other.replace(file)
    np.testing.assert_array_equal(embedding.rows(TOKENS), before)
    os.truncate(kept, 0)
    os.close(kept)
    with pytest.raises(CheckpointError, match="is shorter than when it was opened"):
        embedding.rows(TOKENS)
