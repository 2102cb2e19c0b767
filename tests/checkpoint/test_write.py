"""A checkpoint appears whole or not at all."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from griffinlm.checkpoint import CheckpointError, open_checkpoint, write_checkpoint

from .models import GRIFFINS, Tensors, random_tensors

CONFIG = GRIFFINS["ends in recurrent"]
FORMATS = ["griffinlm", "huggingface", "deepmind"]


def write(tensors: Tensors, destination: Path, **options: str) -> None:
    write_checkpoint(CONFIG, tensors.items(), destination, **{"format": "griffinlm", **options})  # pyright: ignore


def test_an_existing_destination_is_left_as_it_is(tmp_path: Path):
    occupied = tmp_path / "model"
    occupied.mkdir()
    (occupied / "mine").write_text("precious")
    for destination in (occupied, occupied / "mine"):
        with pytest.raises(CheckpointError, match="exists already") as caught:
            write(random_tensors(CONFIG), destination)
        assert caught.value.hint
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "mine"]


def test_an_empty_directory_is_a_free_destination(tmp_path: Path):
    (tmp_path / "model").mkdir()
    write(random_tensors(CONFIG), tmp_path / "model")
    assert open_checkpoint(tmp_path / "model").config == CONFIG
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_parent_is_made(tmp_path: Path):
    write(random_tensors(CONFIG), tmp_path / "a" / "b")
    assert open_checkpoint(tmp_path / "a" / "b").config == CONFIG


def _broken(kind: str) -> Tensors:
    tensors = random_tensors(CONFIG)
    last = list(tensors)[-1]
    if kind == "missing":
        del tensors[last]
    elif kind == "unknown":
        tensors["layers.99.x"] = tensors[last]
    elif kind == "shape":
        tensors[last] = tensors[last][1:]
    elif kind == "type":
        tensors[last] = tensors[last].astype(np.int32)
    elif kind == "NaN":
        tensors[last][0] = np.nan
    return tensors


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "has 1 fault: final_norm.scale is missing"),
        ("unknown", "layers.99.x is no parameter of this model"),
        ("shape", r"final_norm.scale is \[23\] float32, expected \[24\] float32, bfloat16 or float16"),
        ("type", r"final_norm.scale is \[24\] int32"),
        ("NaN", "final_norm.scale holds NaN or infinity"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_faulty_tensors_leave_nothing_behind(kind: str, message: str, format: str, tmp_path: Path):
    if format == "deepmind":
        pytest.importorskip("torch")
    with pytest.raises(CheckpointError, match=message):
        write(_broken(kind), tmp_path / "model", format=format)
    assert not list(tmp_path.iterdir())


def test_a_parameter_given_twice_is_refused(tmp_path: Path):
    tensors = random_tensors(CONFIG)
    with pytest.raises(CheckpointError, match=r"embedding\.weight is given twice"):
        write_checkpoint(CONFIG, [*tensors.items(), *tensors.items()], tmp_path / "model", "griffinlm")


def test_a_cast_that_overflows_is_refused(tmp_path: Path):
    tensors = random_tensors(CONFIG)
    tensors["final_norm.scale"][0] = 1e30
    with pytest.raises(CheckpointError, match=r"final_norm\.scale holds NaN or infinity as float16"):
        write(tensors, tmp_path / "model", dtype="float16")


@pytest.mark.parametrize(("option", "value"), [("format", "gguf"), ("format", "flax"), ("dtype", "int8")])
def test_an_unknown_option_lists_what_is_allowed(option: str, value: str, tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"{option} is '{value}'; allowed are "):
        write(random_tensors(CONFIG), tmp_path / "model", **{option: value})


def test_an_interrupted_writer_cleans_up(tmp_path: Path):
    def interrupted() -> Iterator[tuple[str, np.ndarray]]:
        yield from list(random_tensors(CONFIG).items())[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(CONFIG, interrupted(), tmp_path / "model", "griffinlm", shard_bytes=1)
    assert not list(tmp_path.iterdir())


WRITER = """
import dataclasses, sys
from griffinlm.checkpoint import CheckpointError, initial_tensors, write_checkpoint
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.presets import bfloat16_sqrt

config = ModelConfig.preset("recurrentgemma-2b")
config = dataclasses.replace(
    config, vocab_size=61, width=32, num_layers=5, mlp_hidden=48, embedding_scale=bfloat16_sqrt(32),
    recurrent=RecurrentConfig(32, 4), attention=AttentionConfig(4, 8, 7),
)

def tensors():
    for index, pair in enumerate(initial_tensors(config, 0)):
        if index == 20 and {pause}:
            print("half", flush=True)
            sys.stdin.read()
        yield pair

{limit}
try:
    write_checkpoint(config, tensors(), sys.argv[1], "{format}", shard_bytes=20_000)
except CheckpointError as error:
    print(error, end="")
"""


def test_a_killed_writer_leaves_nothing_at_the_destination(tmp_path: Path):
    program = WRITER.format(pause=True, limit="", format="griffinlm")
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "model")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    assert any(tmp_path.glob(".model.*.partial/*.safetensors")), "the writer should be half way"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    write(random_tensors(CONFIG), tmp_path / "model")
    assert open_checkpoint(tmp_path / "model").config == CONFIG


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
@pytest.mark.parametrize("format", FORMATS)
def test_a_refused_write_is_one_line_and_cleaned_up(format: str, tmp_path: Path):
    """A limit on the size of files stands for a full disk: the system refuses in the middle of a write."""
    if format == "deepmind":
        pytest.importorskip("torch")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))"
    program = WRITER.format(pause=False, limit=limit, format=format)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"cannot write {tmp_path / 'model'}: ")
    assert "File too large" in done.stdout
    assert "\n" not in done.stdout
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_files_have_the_mode_of_new_files(tmp_path: Path):
    (tmp_path / "new").touch()
    write(random_tensors(CONFIG), tmp_path / "model")
    modes = {path.stat().st_mode for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}
