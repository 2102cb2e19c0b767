"""How fast is the edge engine beside llama.cpp and transformers, on this processor and in this hour?

Models of 2 to 3 billion random weights: RecurrentGemma-2B here, Gemma-2B and Mamba-2.8B in llama.cpp, RecurrentGemma-2B
in transformers. Decoding at growing positions, a prompt of 512 tokens, eight rows together. Installs nothing: what an
interpreter cannot import is left out, and the record says so. Programs run one at a time in processes of their own, all
of them once a round, and the memory's read bandwidth is taken before and after each, so that a drifting machine shows.

llama.cpp is given what suits it: files in one type throughout (its quantizer would keep a larger head), no sampling,
the better of flash attention off and on. Its GGUF files need 6 GB under --work; those that are there are used again.

    python benchmarks/cpu_peers.py --threads 2 --rounds 3 --out benchmarks/results
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.comparison import compare, summarize
from peers.programs import Program, RunError, all_programs

from griffinlm.errors import GriffinError
from griffinlm.evaluate.bandwidth import read_bandwidth
from griffinlm.evaluate.record import header, write

PACKAGES = ("griffinlm", "llama_cpp", "transformers")
SMOKE_BANDWIDTH_BYTES = 1 << 24


def chosen_interpreters(assignments: Sequence[str], packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """`PACKAGE=PATH` texts as package -> interpreter; this one for packages that are not named.

    Raises:
        GriffinError: a text has another form, or names a package that is not compared.
    """
    chosen: dict[str, str] = dict.fromkeys(packages, sys.executable)
    for assignment in assignments:
        package, separator, path = assignment.partition("=")
        if package not in packages or not separator or not path:
            raise GriffinError(
                f"--python-for is {assignment!r}; it must be PACKAGE=PATH, PACKAGE one of {', '.join(packages)}"
            )
        chosen[package] = path
    return chosen


def measure(
    programs: Sequence[Program], interpreters: dict[str, str], work: Path, num_rounds: int, threads: int, smoke: bool
) -> dict[str, Any]:
    """Runs every program `num_rounds` times, in turn.

    Returns:
        `programs`: what became of each; `figures` of every round; `read_bytes_per_second` before and after each run.
    """
    states = {program.name: describe(program, interpreters[program.package]) for program in programs}
    figures, bandwidths = [], []
    num_bytes = SMOKE_BANDWIDTH_BYTES if smoke else None
    for number in range(1, num_rounds + 1):
        for program in programs:
            state, python = states[program.name], interpreters[program.package]
            if state["status"] != "measured":
                continue
            print(f"round {number} of {num_rounds}: {program.name}", file=sys.stderr)
            try:
                program.prepare(python, work)
                before = round(read_bandwidth(threads, num_bytes))
                found = program.measure(python, work)
                after = round(read_bandwidth(threads, num_bytes))
            except RunError as error:
                print(f"{program.name} failed: {error}", file=sys.stderr)
                state.update(status="failed", reason=str(error))
                continue
            figures += [{"program": program.name, "round": number, **figure} for figure in found]
            bandwidths.append({"program": program.name, "round": number, "before": before, "after": after})
    return {"programs": list(states.values()), "figures": figures, "read_bytes_per_second": bandwidths}


def describe(program: Program, python: str) -> dict[str, Any]:
    """A program as the record names it: skipped where this interpreter lacks it, failed where one named for it does."""
    described = {
        "program": program.name,
        "package": program.package,
        "model": program.model,
        "weights": program.weights,
        "threads": program.settings.threads,
    }
    try:
        return {**described, "status": "measured", "version": program.version(python)}
    except RunError as error:
        print(f"{program.name} is left out: {error}", file=sys.stderr)
        return {**described, "status": "skipped" if python == sys.executable else "failed", "reason": str(error)}


def table(report: dict[str, Any]) -> str:
    """The report as lines of text: figures, then ratios beside their targets."""
    lines = [f"{'program':<24}{'measure':<9}{'position':>9}{'rows':>6}{'ms':>10}{'least-most':>20}{'tokens/s':>10}"]
    for figure in report["summary"]:
        spread = f"{figure['milliseconds_least']:.1f}-{figure['milliseconds_most']:.1f}"
        lines.append(
            f"{figure['program']:<24}{figure['measure']:<9}{figure['position']:>9,}{figure['rows']:>6}"
            f"{figure['milliseconds']:>10.1f}{spread:>20}{figure['tokens_per_second']:>10.1f}"
        )
    lines += [
        f"{state['program']:<24}{state['status']}: {state['reason']}"
        for state in report["programs"]
        if state["status"] != "measured"
    ]
    lines += ["", f"{'ratio of tokens a second':<55}{'position':>9}{'ratio':>8}{'least-most':>14}{'target':>8}"]
    for row in report["comparisons"]:
        names = f"{row['measure']:<8}{row['ours']} / {row['theirs']}"
        if row["ratio"] is None:
            lines.append(f"{names:<55}{row['position']:>9,}{'-':>8}{'':>14}{row['target']:>8.1f}  not measured")
            continue
        spread = f"{row['ratio_least']:.2f}-{row['ratio_most']:.2f}"
        verdict = "met" if row["met"] else "missed"
        lines.append(
            f"{names:<55}{row['position']:>9,}{row['ratio']:>8.2f}{spread:>14}{row['target']:>8.1f}  {verdict}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every program (default: 2)")
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default: 3)")
    parser.add_argument(
        "--python-for",
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help=f"interpreter that has a package ({', '.join(PACKAGES)}); this one if not given; may be repeated",
    )
    parser.add_argument("--only", action="append", metavar="PROGRAM", help="a program to measure; may be repeated")
    parser.add_argument("--work", type=Path, help="directory for model files (default: a temporary one)")
    parser.add_argument("--smoke", action="store_true", help="tiny models: shows in seconds that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-cpu_peers.json")
    options = parser.parse_args(arguments)
    try:
        report = run(options, sys.argv[1:] if arguments is None else list(arguments))
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    print(json.dumps(report) if options.json else table(report))
    return int(any(state["status"] == "failed" for state in report["programs"]))


def without_folders(argument: str) -> str:
    """An argument as the record tells it: paths of this machine say nothing to a reader."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name.upper() if Path(value).is_absolute() else value)


def run(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Measures what the options ask for and writes the record."""
    for name in ("threads", "rounds"):
        if getattr(options, name) < 1:
            raise GriffinError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    interpreters = chosen_interpreters(options.python_for)
    programs = all_programs(options.threads, options.smoke)
    names = [program.name for program in programs]
    for name in options.only or ():
        if name not in names:
            raise GriffinError(f"--only is {name!r}; programs are {', '.join(names)}")
    chosen = [program for program in programs if not options.only or program.name in options.only]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        results = measure(chosen, interpreters, work, options.rounds, options.threads, options.smoke)
    report = {
        **header("benchmarks/cpu_peers.py", [without_folders(argument) for argument in arguments]),
        "threads": options.threads,
        "rounds": options.rounds,
        "smoke": options.smoke,
        "summary": summarize(results["figures"]),
        "comparisons": compare(results["figures"]),
        **results,
    }
    if options.out is not None:
        write(report, "cpu_peers", options.out)
    return report


if __name__ == "__main__":
    sys.exit(main())
