"""The benchmark runs from the command line on a small model and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import ModelConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scheduler_load.py"
SMALL = ("--prompt-tokens", "160", "--turns", "4", "--steps", "8", "--rounds", "1")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def random_model(preset: str, directory: Path) -> str:
    config = ModelConfig.preset(preset)
    write_checkpoint(config, initial_tensors(config, seed=0), directory, "griffinlm")
    return str(directory)


def test_reports_speed_pace_and_later_turns(tmp_path: Path):
    out = tmp_path / "results"
    done = run("--model", random_model("tiny-griffin", tmp_path / "model"), *SMALL, "--json", "--out", str(out))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["batch"]["rows"] == 8
    assert report["batch"]["share"] > 0
    assert all(milliseconds > 0 for cuts in report["sampling, ms a step"].values() for milliseconds in cuts.values())
    assert report["pace"]["steps"] >= 1
    for tier in ("memory", "disk"):
        turns = report[f"later turns, from {tier}"]
        assert turns["tokens_at_last_turn"] == 160
        assert turns["full_states_bytes"] > 0
        assert turns["second_turn_share"] > 0
    (written,) = out.iterdir()
    assert written.name.endswith(f"-{report['date']}-scheduler_load.json")
    assert json.loads(written.read_text(encoding="utf-8")) == report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--turns", "0"), "--turns is 0"), (("--model", "eyas", "--preset", "tiny-hawk"), "both given")],
)
def test_refuses_what_it_cannot_measure(arguments: tuple[str, ...], message: str):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
