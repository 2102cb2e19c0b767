"""The benchmark runs from the command line and says of every model and limit what became of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_boards.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs limits of memory, as Linux has them")
def test_what_fits_runs_and_what_does_not_is_refused_with_the_limit_told(tmp_path: Path):
    done = run("--models", "eyas", "--limits", 2048, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("limit 2048 MiB by ")
    (file,) = tmp_path.iterdir()
    (found,) = json.loads(file.read_text(encoding="utf-8"))["runs"]
    assert found["outcome"] == "runs"
    assert found["tokens_per_second"] > 0
    assert 0 < found["peak_resident_bytes"] < found["limit_bytes"] == 2 << 30
    if found["limited_by"].startswith("control group"):
        # In so small an address space Python does not even start.
        done = run("--models", "eyas", "--limits", 96, "--out", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = json.loads(file.read_text(encoding="utf-8"))["runs"]
        assert found["outcome"] == "refused"
        assert found["refusal"].startswith("error: eyas needs ")


@pytest.mark.parametrize(("option", "value"), [("--models", "none"), ("--limits", "0"), ("--limits", "1,,2")])
def test_what_is_unknown_is_refused(option: str, value: str):
    done = run(option, value)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option[2:]} ")
