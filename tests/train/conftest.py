"""A small run: two files of text, a tokenizer of bytes, a model of some thousand parameters."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from griffinlm.train.config import PretrainConfig, read_pretrain_config

WORDS = ["the", "hawk", "and", "griffin", "are", "older", "than", "hill", "they", "hunt", "over", "do", "not", "grow"]

RUN = """
output = "out"
tokenizer = "{tokenizer}"
batch_rows = 8
log_every_steps = 1
precision = "float32"
device = "cpu"

[model]
preset = "tiny-griffin"
vocab_size = 288

[sources.a]
files = ["a.jsonl"]

[sources.b]
files = ["b.jsonl"]

[data]
row_tokens = 24
held_out_share = 0.1

[[stages]]
steps = 4
mixture = {{ a = 3, b = 1 }}

[[stages]]
steps = 2
mixture = {{ b = 1 }}

[optimizer]
learning_rate = 1e-2

[schedule]
kind = "wsd"
warm_up_steps = 1

[checkpoints]
every_steps = 2
num_kept = 100
"""


def write_documents(path: Path, seed: int, num_documents: int = 120) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 30))) for _ in range(num_documents)]
    path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")
    return texts


def write_run(directory: Path, tokenizer: Path) -> Path:
    """The TOML file of a run with six steps, and its text."""
    write_documents(directory / "a.jsonl", 0)
    write_documents(directory / "b.jsonl", 1)
    path = directory / "run.toml"
    path.write_text(RUN.format(tokenizer=tokenizer), encoding="utf-8")
    return path


@pytest.fixture
def run_file(tmp_path: Path, tiny_tokenizer_directory: Path) -> Path:
    return write_run(tmp_path, tiny_tokenizer_directory)


@pytest.fixture
def run(run_file: Path) -> Callable[..., PretrainConfig]:
    """`run("batch_rows=4")`: the configuration with changes."""
    return lambda *changes: read_pretrain_config(run_file, changes)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_directory: Path) -> Path:
    """The directory of a run that is done. Not to be written to."""
    from griffinlm.train.pretrain import pretrain

    directory = tmp_path_factory.mktemp("finished")
    pretrain(read_pretrain_config(write_run(directory, tiny_tokenizer_directory)))
    return directory


@pytest.fixture
def finished(finished_once: Path, run_file: Path) -> PretrainConfig:
    """A run whose output is there already, with a checkpoint of every second step and a model."""
    shutil.copytree(finished_once / "out", run_file.parent / "out")
    return read_pretrain_config(run_file)
