"""How does a server hold up when several people talk to it at once?

Bounded load on loopback: short questions, long documents, conversations that send their history again and others that
name the response before, all streamed, a fixed number of clients at once. Reported are the time to the first token by
kind, tokens a second in all, the time between tokens as a client sees it, and the server's resident set.

`griffin serve` with eyas and with RecurrentGemma-2B of random weights, llama.cpp's server in Python with Gemma-2B of
random weights; that one takes one request at a time and has no responses, so there all history is sent again. In random
models every character is a token, so both read and write as much; they never end an answer, so all answers have the
length that was asked for. Servers run one at a time. Installs nothing: what an interpreter cannot import is left out,
and the record says so. GGUF files need 4 GB under --work; those that are there are used again. The clients are httpx.

    python benchmarks/serve_load.py --threads 2 --out benchmarks/results
    python benchmarks/serve_load.py --only "griffin eyas"
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cpu_peers import SMOKE_BANDWIDTH_BYTES, chosen_interpreters, without_folders
from peers.programs import RunError
from serving.chats import draw_chats, first_chat
from serving.client import Answer, hold
from serving.process import Memory, running
from serving.servers import Server, all_servers

from griffinlm.errors import GriffinError
from griffinlm.evaluate.bandwidth import read_bandwidth
from griffinlm.evaluate.record import header, write

PACKAGES = ("griffinlm", "llama_cpp")
SMOKE_CHATS, SMOKE_SHARE = 6, 0.1
MILLISECONDS = 1e3
MOST_POINTS = 60
"""Of the resident set in the record."""


def spread(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, 99th percentile and the most, in milliseconds."""
    values = np.asarray(seconds) * MILLISECONDS
    median, late = np.percentile(values, [50, 99])
    return {
        "count": len(values),
        "median_ms": round(float(median), 2),
        "percentile_99_ms": round(float(late), 2),
        "most_ms": round(float(values.max()), 2),
    }


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """What the clients saw, joined: the time to the first token by kind, the time between tokens of all."""
    kinds = dict.fromkeys(answer.kind for answer in answers)
    first = {kind: [answer.first_token_seconds for answer in answers if answer.kind == kind] for kind in sorted(kinds)}
    between = [gap for answer in answers for gap in answer.between_seconds]
    num_tokens = sum(answer.num_tokens for answer in answers)
    return {
        "seconds": round(seconds, 2),
        "answers": len(answers),
        "tokens": num_tokens,
        "tokens_per_second": round(num_tokens / seconds, 2),
        "first_token": {kind: spread(found) for kind, found in first.items()},
        "between_tokens": spread(between) if between else None,
    }


def loaded(server: Server, python: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Starts a server, holds all chats with it, `options.clients` at once, and ends it.

    Raises:
        RunError: it cannot be started, or an answer failed.
    """
    model = server.prepare(python, work)
    num_chats, share = (SMOKE_CHATS, SMOKE_SHARE) if options.smoke else (options.chats, 1.0)
    chats = draw_chats(num_chats * server.load, *server.words, options.seed, share)
    with running(server, python, model, work / "server.log") as (url, pid):
        talk = partial(hold, url=url, model=model.name, has_responses=server.has_responses)
        talk(first_chat(chats))
        with Memory(pid) as memory, ThreadPoolExecutor(options.clients) as pool:
            start = time.perf_counter()
            answers = [answer for found in pool.map(talk, chats) for answer in found]
            seconds = time.perf_counter() - start
    sizes = [look["bytes"] for look in memory.series]
    resident = {"first": sizes[0], "most": max(sizes), "last": sizes[-1]} if sizes else None
    points = memory.series[:: 1 + len(sizes) // MOST_POINTS]
    return {**summary(answers, seconds), "resident_bytes": resident, "memory": points}


def measure(server: Server, python: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A server with its figures, and the memory's read bandwidth around them; or why there are none."""
    described: dict[str, Any] = {
        "server": server.name,
        "package": server.package,
        "model": server.model,
        "weights": server.weights,
        "threads": server.threads,
    }
    try:
        described["version"] = server.version(python)
    except RunError as error:
        status = "skipped" if python == sys.executable else "failed"
        return {**described, "status": status, "reason": str(error)}
    num_bytes = SMOKE_BANDWIDTH_BYTES if options.smoke else None
    try:
        before = round(read_bandwidth(server.threads, num_bytes))
        found = loaded(server, python, work, options)
        after = round(read_bandwidth(server.threads, num_bytes))
    except RunError as error:
        return {**described, "status": "failed", "reason": str(error)}
    return {**described, "status": "measured", **found, "read_bytes_per_second": {"before": before, "after": after}}


def table(report: dict[str, Any]) -> str:
    """The report as lines of text."""
    lines = [f"{'server':<24}{'':<22}{'count':>7}{'median ms':>11}{'99% ms':>11}{'most ms':>11}"]
    for row in report["servers"]:
        if row["status"] != "measured":
            lines.append(f"{row['server']:<24}{row['status']}: {row['reason']}")
            continue
        rows = {f"first, {kind}": found for kind, found in row["first_token"].items()}
        rows |= {"between tokens": row["between_tokens"]} if row["between_tokens"] else {}
        lines += [
            f"{row['server']:<24}{name:<25}{found['count']:>4}{found['median_ms']:>11,.1f}"
            f"{found['percentile_99_ms']:>11,.1f}{found['most_ms']:>11,.1f}"
            for name, found in rows.items()
        ]
        speed = f"{row['tokens_per_second']:.1f} tokens a second, {row['tokens']:,} in {row['seconds']} s"
        text = f"{row['server']:<24}{speed}"
        if row["resident_bytes"] is not None:
            sizes = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in row["resident_bytes"].items())
            text += f"; resident megabytes: {sizes}"
        lines += [text, ""]
    return "\n".join(lines)


def run(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Measures what the options ask for and writes the record."""
    for name in ("threads", "clients", "chats"):
        if getattr(options, name) < 1:
            raise GriffinError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    interpreters = chosen_interpreters(options.python_for, PACKAGES)
    servers = all_servers(options.threads, options.smoke)
    names = [server.name for server in servers]
    for name in options.only or ():
        if name not in names:
            raise GriffinError(f"--only is {name!r}; servers are {', '.join(names)}")
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for server in servers:
            if options.only and server.name not in options.only:
                continue
            print(server.name, file=sys.stderr)
            found.append(measure(server, interpreters[server.package], work, options))
    report = {
        **header("benchmarks/serve_load.py", [without_folders(argument) for argument in arguments]),
        **{name: getattr(options, name) for name in ("threads", "clients", "chats", "seed", "smoke")},
        "servers": found,
    }
    if options.out is not None:
        write(report, "serve_load", options.out)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every server (default: 2)")
    parser.add_argument("--clients", type=int, default=4, help="chats at a time (default: 4)")
    parser.add_argument("--chats", type=int, default=12, help="chats in all, ten times as many for eyas (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="of what is said (default: 0)")
    parser.add_argument("--only", action="append", metavar="SERVER", help="a server to measure; may be repeated")
    parser.add_argument(
        "--python-for",
        action="append",
        default=[],
        metavar="PACKAGE=PATH",
        help=f"interpreter that has a package ({', '.join(PACKAGES)}); this one if not given; may be repeated",
    )
    parser.add_argument("--work", type=Path, help="directory for model files (default: a temporary one)")
    parser.add_argument("--smoke", action="store_true", help="tiny models, few words: shows that everything runs")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-serve_load.json")
    options = parser.parse_args(arguments)
    try:
        report = run(options, sys.argv[1:] if arguments is None else list(arguments))
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    print(json.dumps(report) if options.json else table(report))
    return int(any(row["status"] == "failed" for row in report["servers"]))


if __name__ == "__main__":
    sys.exit(main())
