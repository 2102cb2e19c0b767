"""The file of exits: what is written is read, and what is damaged or another model's is refused."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from griffinlm.checkpoint.errors import CheckpointError
from griffinlm.checkpoint.exits import EXITS_FILE, Exits, read_exits, write_exits
from griffinlm.config import ModelConfig, RecursionConfig
from griffinlm.presets import PRESETS

LOOPED = dataclasses.replace(PRESETS["tiny-griffin"], num_layers=10, recursion=RecursionConfig(3))


def exits(config: ModelConfig = LOOPED, num_loops: int = 3, hidden: int = 4) -> Exits:
    random = np.random.default_rng(0)
    shapes = {"inner": (hidden, config.width), "inner_bias": (hidden,), "weights": (hidden,), "bias": ()}
    parts = {n: random.standard_normal((num_loops - 1, *shape)).astype(np.float32) for n, shape in shapes.items()}
    thresholds, shares = (0.75, math.inf)[: num_loops - 1], (0.5, 0.0)[: num_loops - 1]
    return Exits(**parts, thresholds=thresholds, quality=0.9, shares=shares, num_tokens=1234)


def test_what_is_written_is_read_to_the_bit(tmp_path: Path):
    write_exits(tmp_path, exits())
    found = read_exits(tmp_path, LOOPED)
    assert found is not None
    for field in dataclasses.fields(Exits):
        assert np.array_equal(getattr(found, field.name), getattr(exits(), field.name)), field.name
    assert [path.name for path in tmp_path.iterdir()] == [EXITS_FILE]


def test_a_directory_without_the_file_has_no_exits(tmp_path: Path):
    assert read_exits(tmp_path, LOOPED) is None


def test_confidence_is_the_sigmoid_of_the_heads_score():
    given, random = exits(), np.random.default_rng(1)
    normed = random.standard_normal((5, 2, LOOPED.width))
    for token, loop in np.ndindex(5, 2):
        hidden = np.maximum(given.inner[loop] @ normed[token, loop] + given.inner_bias[loop], 0)
        expected = 1 / (1 + math.exp(-(given.weights[loop] @ hidden + given.bias[loop])))
        assert given.confidence(normed)[token, loop] == pytest.approx(expected, rel=1e-5)


def test_the_least_confidence_is_zero_without_a_warning(recwarn: pytest.WarningsRecorder):
    given = dataclasses.replace(exits(), bias=np.full(2, -1e4, np.float32))
    assert not given.confidence(np.zeros((1, 2, LOOPED.width), np.float32)).any()
    assert not recwarn.list


def test_those_of_other_loops_or_another_width_are_refused(tmp_path: Path):
    write_exits(tmp_path, exits())
    two = dataclasses.replace(LOOPED, recursion=RecursionConfig(2))
    words = r"has inner of float32 \[2, 4, 32\]; 2 loops of width 32 take float32 \[1, 4, 32\]"
    with pytest.raises(CheckpointError, match=words):
        read_exits(tmp_path, two)
    with pytest.raises(CheckpointError, match=r"1 loops of width 32 take float32 \[0, 4, 32\]"):
        read_exits(tmp_path, PRESETS["tiny-griffin"])
    with pytest.raises(CheckpointError, match=r"width 40 take float32 \[2, 4, 40\]"):
        read_exits(tmp_path, dataclasses.replace(LOOPED, width=40))


def change(path: Path, tensors: dict[str, np.ndarray] | None = None, **metadata: str) -> None:
    """Writes the file anew with other tensors or metadata; what is None is left out."""
    with safe_open(path, framework="numpy") as opened:
        before = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = opened.metadata()
    save_file({**before, **(tensors or {})}, path, {**facts, **metadata})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"format_version": 2}, "format_version 2; this version of griffinlm reads 1"),
        ({"quality": "good"}, "is damaged"),
        ({"shares": None}, "is damaged"),
        ({"thresholds": [0.5]}, "3 loops take 2"),
        ({"thresholds": [0.5, math.nan]}, r"has thresholds \(0.5, nan\); 3 loops take 2, in 0..inf"),
        ({"thresholds": [-1, 0.5]}, "has thresholds"),
        ({"shares": [0.5]}, r"has shares \(0.5,\); 3 loops take 2, in 0..1"),
        ({"shares": [0.5, 9]}, "has shares"),
        ({"quality": 7}, "has quality 7.0; it is a share, in 0..1"),
        ({"quality": math.nan}, "has quality nan"),
    ],
)
def test_a_file_with_damaged_facts_is_refused(tmp_path: Path, facts, words):
    write_exits(tmp_path, exits())
    given = {"format_version": 1, "thresholds": [0.5, 0.5], "quality": 1, "shares": [0.5, 0.5], "num_tokens": 3}
    change(tmp_path / EXITS_FILE, exits=json.dumps({**given, **facts}))
    with pytest.raises(CheckpointError, match=words):
        read_exits(tmp_path, LOOPED)


@pytest.mark.parametrize("metadata", [{"exits": "{"}, {"exits": "{}"}, {"exits": "3"}, {"exits": "[" * 100_000}])
def test_a_file_without_facts_is_refused(tmp_path: Path, metadata):
    write_exits(tmp_path, exits())
    change(tmp_path / EXITS_FILE, **metadata)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_exits(tmp_path, LOOPED)


def test_a_file_with_damaged_numbers_is_refused(tmp_path: Path):
    write_exits(tmp_path, exits())
    path = tmp_path / EXITS_FILE
    for name, values, words in (
        ("bias", np.array([np.nan, 0], np.float32), "holds NaN or infinity in bias"),
        ("weights", np.zeros((2, 4)), "weights of float64"),
        ("weights", np.zeros((2, 5), np.float32), r"inner of float32 \[2, 4, 32\]"),
    ):
        write_exits(tmp_path, exits())
        change(path, {name: values})
        with pytest.raises(CheckpointError, match=words):
            read_exits(tmp_path, LOOPED)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_exits(tmp_path, LOOPED)
