"""Pretraining in calls of bounded time gives the very weights of one long call, in files of bounded size."""

import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "recipes"
WORDS = [f"hawk{number}" for number in range(50)]
SIZE = ["--width", "64", "--num-layers", "3", "--batch-rows", "2", "--stable-steps", "2", "--anneal-steps", "1"]
SHARD_BYTES = 1_100_000


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sixty documents of every source."""
    pytest.importorskip("torch", reason="needs the extra torch")
    monkeypatch.syspath_prepend(str(RECIPES))
    from corpus import PRETRAIN_SOURCES

    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=150))

    files = {f"pretrain/{source}": [{"text": text(), "source": "x"} for _ in range(60)] for source in PRETRAIN_SOURCES}
    files["pretrain/tinystories"].append({"text": text(), "source": "v1-valid"})
    turns = [[{"role": "user", "content": text()}, {"role": "assistant", "content": text()}] for _ in range(40)]
    files["sft/sft_mix"] = [{"messages": messages} for messages in turns]
    for name, rows in files.items():
        path = tmp_path / "data" / f"{name}.jsonl.xz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))
    return tmp_path / "data"


def trained(data: Path, work: Path, *options: str) -> str:
    command = [sys.executable, RECIPES / "train_eyas.py", data, work, *SIZE, "--shard-bytes", str(SHARD_BYTES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def sent(work: Path, there: Path) -> None:
    """Copies what training needs, as the recipe sends it to a machine without DATA."""
    names = [path.name for path in work.glob("*.uint16")]
    command = f"tar -cJ tokenizer held_out.json {' '.join(names)} | split -b 20K - {there}/part."
    there.mkdir()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=work, check=True)
    unpacked = f"cat {there}/part.* | tar -xJ -C {there}"
    subprocess.run(["bash", "-o", "pipefail", "-c", unpacked], check=True)


def weights(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (work / "eyas").glob("*.safetensors")}


def test_calls_that_are_cut_off_on_a_machine_without_the_text_equal_one_call(data: Path, tmp_path: Path):
    from train_tokenizer import write_tokenizer

    here, once, there = tmp_path / "here", tmp_path / "once", tmp_path / "there"
    write_tokenizer(WORDS, here / "tokenizer", 512)
    shutil.copytree(here, once)
    assert "stopped" not in trained(data, once)
    trained(data, here, "--stable-steps", "0", "--anneal-steps", "0")
    assert not (here / "checkpoint.pt").exists()
    sent(here, there)
    assert "stopped after 1 of 3 steps" in trained(tmp_path / "none", there, "--minutes", "0")
    assert "stopped after 2 of 3 steps" in trained(tmp_path / "none", there, "--minutes", "0")
    assert not (there / "eyas").exists()
    trained(tmp_path / "none", there)
    expected, found = map(weights, (once, there))
    assert expected == found
    assert len(expected) > 1, "one file for all weights"
    assert all(len(content) < SHARD_BYTES + 10_000 for content in expected.values())
