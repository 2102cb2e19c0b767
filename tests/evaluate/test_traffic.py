"""Bytes that a step reads: layers that share parameters read them once each."""

import dataclasses
from pathlib import Path

import pytest
from edge.models import config_of, write_model

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import RecursionConfig
from griffinlm.edge.engine import build_engine
from griffinlm.evaluate.traffic import weight_bytes

GRIFFIN = config_of("Griffin", 7)


def bytes_read(checkpoint: Checkpoint, is_packed: bool) -> int:
    return weight_bytes(checkpoint, build_engine(checkpoint, "float32", 1), is_packed)


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_a_recursive_model_reads_what_a_plain_one_of_its_depth_does(weights: str, tmp_path: Path):
    recursive = dataclasses.replace(GRIFFIN, recursion=RecursionConfig(2))
    plain, shared = (write_model(c, tmp_path / str(i), weights) for i, c in enumerate((GRIFFIN, recursive)))
    assert shared.num_bytes < plain.num_bytes
    assert bytes_read(plain, is_packed=True) == plain.num_bytes
    for is_packed in (False, True):
        assert bytes_read(shared, is_packed) == bytes_read(plain, is_packed)
