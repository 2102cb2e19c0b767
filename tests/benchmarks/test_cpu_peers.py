"""The comparison runs from the command line on tiny models; ratios and targets are what they say."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "cpu_peers.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def comparison(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers.comparison")


@pytest.fixture
def programs(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("peers.programs")


def figure(program: str, number: int, milliseconds: float) -> dict:
    return {
        "program": program,
        "round": number,
        "measure": "decode",
        "position": 0,
        "rows": 1,
        "milliseconds": milliseconds,
        "tokens_per_second": 1e3 / milliseconds,
        "peak_rss_bytes": 100 + number,
    }


def test_smoke_run_measures_or_says_why_not(tmp_path):
    pytest.importorskip("onnxruntime")
    done = run("--smoke", "--rounds", "1", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (written,) = tmp_path.iterdir()
    assert written.name.endswith(f"-{report['date']}-cpu_peers.json")
    assert json.loads(written.read_text(encoding="utf-8")) == report
    states = {state["program"]: state for state in report["programs"]}
    assert states["griffin int4"]["status"] == states["griffin int8"]["status"] == "measured"
    for name, state in states.items():
        measured = {row["measure"] for row in report["summary"] if row["program"] == name}
        if state["status"] == "skipped":
            assert "No module named" in state["reason"]
            assert not measured
        else:
            assert measured >= {"prefill", "decode"}
    positions = {row["position"] for row in report["summary"] if row["program"] == "griffin int4"}
    assert positions == {0, 64}
    assert all(row["before"] > 0 and row["after"] > 0 for row in report["read_bytes_per_second"])


def test_ratios_pair_what_one_round_measured(comparison):
    figures = [figure("us", 1, 50.0), figure("them", 1, 100.0), figure("us", 2, 100.0), figure("them", 2, 100.0)]
    target = comparison.Target("decode", 0, "us", "them", 1.6)
    (row,) = comparison.compare([*figures, figure("us", 3, 1.0)], [target])
    assert (row["ratio"], row["ratio_least"], row["ratio_most"], row["met"]) == (1.5, 1.0, 2.0, False)


def test_a_target_without_figures_is_not_met_and_not_missed(comparison):
    (row,) = comparison.compare([figure("us", 1, 50.0)], [comparison.Target("decode", 0, "us", "them", 1.0)])
    assert row["ratio"] is None
    assert row["met"] is None


def test_summary_is_median_least_and_most_over_rounds(comparison):
    (row,) = comparison.summarize([figure("us", number, number * 10.0) for number in (1, 2, 6)])
    assert (row["milliseconds"], row["milliseconds_least"], row["milliseconds_most"]) == (20.0, 10.0, 60.0)
    assert row["peak_rss_bytes"] == 106


def test_every_target_names_programs_that_are_measured(comparison, programs):
    names = {program.name for program in programs.all_programs(threads=1, smoke=False)}
    assert {name for target in comparison.TARGETS for name in (target.ours, target.theirs)} == names


def test_llama_cpp_is_given_its_better_flash_attention(programs, monkeypatch, tmp_path):
    lines = [
        {**figure("peer", 1, milliseconds), "flash_attention": flash} for flash, milliseconds in ((0, 9.0), (1, 7.0))
    ]
    monkeypatch.setattr(programs, "run_lines", lambda command: lines)
    (program,) = (p for p in programs.all_programs(threads=1, smoke=True) if p.name == "llama.cpp Gemma Q4_0")
    assert program.measure("python", tmp_path) == [lines[1]]


def test_ours_is_measured_by_its_own_command(programs, monkeypatch, tmp_path):
    commands = []

    def bench(command):
        commands.append(command[command.index("bench") + 1 :])
        return [{"position": 0, "rows": 2, "tokens_per_second": 20.0, "peak_rss_bytes": 1}]

    monkeypatch.setattr(programs, "run_lines", bench)
    ours = programs.all_programs(threads=3, smoke=True)[0]
    prefill, decode, batch = ours.measure("python", tmp_path)
    assert [command[0] for command in commands] == ["prefill", "decode", "batch"]
    assert {"--weights=int4", "--positions=0,64", "--threads=3", "--rows=1", "--json"} <= set(commands[1])
    assert (prefill["milliseconds"], decode["milliseconds"], batch["milliseconds"]) == (1600.0, 50.0, 100.0)


def test_a_chosen_interpreter_without_the_package_is_a_failure(tmp_path):
    missing = tmp_path / "python"
    done = run("--smoke", "--only", "transformers bfloat16", "--python-for", f"transformers={missing}", "--json")
    assert done.returncode == 1
    (state,) = json.loads(done.stdout)["programs"]
    assert (state["status"], state["reason"]) == ("failed", f"{missing}: No such file or directory")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threads", "0"], "--threads is 0"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--python-for", "numpy=python"], "--python-for is 'numpy=python'"),
        (["--python-for", "llama_cpp"], "--python-for is 'llama_cpp'"),
        (["--only", "vllm"], "--only is 'vllm'"),
    ],
)
def test_refuses_what_it_does_not_know(arguments, message):
    done = run("--smoke", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_a_program_that_fails_is_named_and_fails_the_run(tmp_path):
    broken = tmp_path / "python"
    broken.write_text(
        '#!/bin/sh\ncase "$1$2" in *importlib*) echo \'{"version": "1"}\';; *) echo no luck >&2; exit 1;; esac\n'
    )
    broken.chmod(0o755)
    done = run("--smoke", "--rounds", "1", "--only", "griffin int4", "--python-for", f"griffinlm={broken}", "--json")
    assert done.returncode == 1
    (state,) = json.loads(done.stdout)["programs"]
    assert (state["status"], state["reason"]) == ("failed", "no luck")
