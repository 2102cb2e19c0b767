"""The measurements on a GPU run at tiny sizes on a CPU, from a bare checkout, and every figure is there."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")
pytest.importorskip("transformers", reason="needs the extra train")

ROOT = Path(__file__).parents[2]
MODULES = ("scan", "decode", "throughput", "prefill", "loss_curve", "training")
PEERS = ("accelerated-scan", "flash-linear-attention hgrn")
"""Programs that the tests do not install."""
ABSENT = ("ml_dtypes", "onnx", "onnxruntime", "typer", "trl", "llguidance")
"""What a bare checkout may not have; importing one of them fails in the run."""


def run(*arguments: str, blocked: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    environment.pop("TRITON_INTERPRET", None)
    command = [ROOT / "benchmarks/gpu/all.sh", *arguments]
    if blocked is not None:
        # all.sh sets the path itself, so what blocks imports is put in front by a wrapper of the interpreter.
        wrapper = blocked / "python"
        wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{blocked}:$PYTHONPATH" exec {sys.executable} "$@"\n')
        wrapper.chmod(0o755)
        lines = [f"sys.modules[{name!r}] = None" for name in ABSENT]
        (blocked / "sitecustomize.py").write_text("\n".join(["import sys", *lines]) + "\n")
        environment["PYTHON"] = str(wrapper)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd="/")


def test_smoke_run_measures_everything_in_a_bare_checkout(tmp_path: Path):
    blocked, out = tmp_path / "blocked", tmp_path / "out"
    blocked.mkdir()
    done = run("--smoke", "--out", str(out), blocked=blocked)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    records = {path.stem.split("-gpu_")[1]: json.loads(path.read_text(encoding="utf-8")) for path in out.iterdir()}
    assert records.keys() == set(MODULES)
    for name, record in records.items():
        assert record["is_smoke"]
        assert record["is_complete"]
        assert record["versions"]["torch"]
        assert record["command"].startswith(f"PYTHONPATH=src:benchmarks python -m gpu.{name} ")
        faults = [row for row in record["rows"] if row.keys() & {"failed", "not_measured"}]
        assert all(row.get("program") in PEERS for row in faults), faults
        assert len(faults) < len(record["rows"])
    lengths = {(row["model"], row["program"], row["new_tokens"]) for row in records["throughput"]["summary"]}
    assert len(lengths) == 2 * 2 * 2
    table = done.stdout[done.stdout.rindex("\nscan\n") :]
    assert [line for line in table.splitlines() if line in MODULES] == list(MODULES)
    assert "times_as_fast_as_transformer" in table
    assert "times_gemma" in table
    assert "\ntargets\n" in table


def test_a_module_that_fails_is_named_at_the_end_and_the_others_run(tmp_path: Path):
    """An interpreter that can run one module only stands for a machine on which the others break."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$2" in gpu.scan) echo "{\\"program\\": \\"some\\"}";; *) exit 3;; esac\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python)}
    command = [ROOT / "benchmarks/gpu/all.sh", "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last == f"failed: {' '.join(f'{name} (exit 3)' for name in MODULES[1:])} summary"


def test_search_for_faster_tiles_times_every_kernel_at_tiny_sizes(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-m", "gpu.tune", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    (record,) = (json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.iterdir())
    assert not [row for row in record["rows"] if row.keys() & {"failed", "not_measured"}]
    kernels = {(row["kernel"], row["rows"]) for row in record["summary"]}
    assert len(kernels) == len(record["summary"]) == 2 * 7 + 2
    for row in record["summary"]:
        timed = [
            one["seconds"] for one in record["rows"] if (one["kernel"], one["rows"]) == (row["kernel"], row["rows"])
        ]
        assert len(timed) == 3
        assert row["times_as_fast"] == pytest.approx(row["seconds"] / min(timed))


def test_unknown_option_is_refused():
    done = run("--fast")
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --fast; allowed are --smoke and --out DIRECTORY\n"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Imports a module of benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.fixture
def throughput(gpu):
    return gpu("throughput")


def test_rows_are_compared_with_the_transformer_of_their_size_and_length(gpu):
    rows = [
        {"size": "400M", "tokens": 2048, "model": "griffin-400m", "tokens_per_second": 3.0},
        {"size": "400M", "tokens": 2048, "model": "mqa-320m", "tokens_per_second": 2.0},
        {"size": "1B", "tokens": 2048, "model": "griffin-1.3b", "tokens_per_second": 1.0},
        {"size": "400M", "tokens": 2048, "model": "hawk-400m", "failed": "reason"},
    ]
    found = gpu("summary").compared(rows, "mqa", ("size", "tokens"), "times")
    assert [row.get("times") for row in found] == [1.5, 1.0, None, None]


def test_a_target_is_met_missed_or_not_measured(gpu):
    scan = {"shape": [8, 8192, 2560], "forward_seconds": 2.0}
    tables = {
        "scan": [
            {**scan, "program": "griffinlm", "forward_share_of_copy": 0.6},
            {**scan, "program": "torch loop", "forward_seconds": 1.0},
            {**scan, "program": "some scan", "forward_seconds": 1.9, "computes": "the scan alone"},
            {**scan, "program": "some other scan", "forward_seconds": 4.0, "computes": "the scan alone"},
        ],
        "decode": [
            {"model": "recurrentgemma-2b", "rows": 1, "program": program, "share_of_bound": share}
            for program, share in (("griffinlm, compiled", 0.8), ("griffinlm", 0.5))
        ],
        "throughput": [
            {"program": program, "model": model, "new_tokens": number, "tokens_per_second": speed}
            for program, model, number, speed in (
                ("griffinlm", "recurrentgemma-2b", 2048, 100.0),
                ("griffinlm", "recurrentgemma-2b", 32_768, 96.0),
                ("griffinlm", "gemma-2b", 2048, 100.0),
                ("transformers", "gemma-2b", 32_768, 1.0),
            )
        ],
    }
    found = gpu("targets").targets(tables)
    assert [row["is_met"] for row in found] == [True, False, None, None, False, None, None, None, True, None, None]
    assert found[1]["found"] == pytest.approx(0.95)
    assert found[7]["found"] == pytest.approx(0.8)
    assert found[8]["found"] == pytest.approx(0.96)


def test_time_of_an_answer_is_the_area_under_the_steps_timed(throughput):
    """Seconds a step rise from 1 at position 0 to 3 at 10, then stay."""
    times = {20: 3.0, 0: 1.0, 10: 3.0}
    assert throughput.answer_seconds(times, 0, 10) == pytest.approx(20.0)
    assert throughput.answer_seconds(times, 5, 5) == pytest.approx(12.5)
    assert throughput.answer_seconds(times, 5, 15) == pytest.approx(42.5)
    with pytest.raises(ValueError, match="timed at"):
        throughput.answer_seconds(times, 15, 6)


def test_largest_throughput_counts_only_rows_timed_to_the_end(throughput):
    def row(rows: int, position: int, seconds: float, attention: str = "griffinlm"):
        what = {"model": "m", "program": "p", "attention": attention}
        return {**what, "rows": rows, "position": position, "seconds_per_step": seconds}

    measured = [
        row(4, 8, 1.0),
        row(4, 12, 1.0),
        row(1, 8, 0.5),
        row(1, 12, 0.5),
        row(1, 24, 0.5),
        row(1, 24, 9.0, "torch"),
    ]
    found = {one["new_tokens"]: one for one in throughput.summarise(measured, 8, (4, 16))}
    assert (found[4]["rows"], found[4]["tokens_per_second"]) == (4, pytest.approx(4.0))
    assert (found[16]["rows"], found[16]["tokens_per_second"]) == (1, pytest.approx(2.0))
