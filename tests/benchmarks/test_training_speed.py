"""The training benchmark runs both programs on a tiny model and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_speed.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_reports_speed_and_memory_of_both(tmp_path: Path):
    sizes = ("--tokens", "24", "--steps", "2", "--rounds", "1", "--threads", "1")
    done = run("--smoke", *sizes, "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [pair["matmul_precision"] for pair in (report, report["bfloat16_products"])] == ["highest", "medium"]
    for pair in (report, report["bfloat16_products"]):
        ours, theirs = (pair["summary"][program] for program in ("griffinlm", "transformers"))
        assert pair["speed_ratio"] == pytest.approx(theirs["seconds_per_step"] / ours["seconds_per_step"], rel=0.05)
        assert pair["memory_ratio"] == pytest.approx(ours["peak_bytes"] / theirs["peak_bytes"], abs=1e-3)
        assert [len(pair["runs"][program][0]["losses"]) for program in pair["runs"]] == [2, 1]
        assert all(min(measured["seconds"]) > 0 for runs in pair["runs"].values() for measured in runs)
        assert 0 < pair["products_seconds"] < theirs["seconds_per_step"]
    (written,) = tmp_path.iterdir()
    assert written.name.endswith(f"-{report['date']}-training_speed.json")
    assert json.loads(written.read_text(encoding="utf-8")) == report


def test_refuses_what_it_cannot_measure():
    done = run("--steps", "0")
    assert done.returncode == 2
    assert done.stderr == "error: --steps is 0; it must be at least 1\n"
