"""Griffin, Hawk and the multi-query transformer at one size: held-out text, texts beyond the training length, recall.

    python recipes/baselines.py DATA WORK --seeds 2 --out benchmarks/results

DATA holds pretrain/. The three have equal numbers of parameters and read the same rows of text; others of them, of the
size of the paper's section 6.2, learn its recall tasks. Every run leaves a file in WORK/results when it is done, and
the same command goes on where it was cut off.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baseline_models import PATTERNS, Size
from baseline_recall import RecallScale, train_on_recall
from baseline_text import SHARES, TextScale, pack_sources, train_on_text

from griffinlm.errors import GriffinError
from griffinlm.evaluate.record import header, write

TEXT = TextScale(
    Size(vocab_size=8192, width=128, num_layers=6, head_size=32, window_tokens=128),
    num_documents=1500,
    row_tokens=256,
    batch_rows=8,
    steps=400,
    learning_rate=3e-3,
    held_out_tokens=40_000,
    long_texts=24,
    phonebook_lengths=(128, 256, 512, 1024),
    phonebook_examples=32,
)
RECALL = RecallScale(
    Size(vocab_size=16, width=64, num_layers=5, head_size=16, window_tokens=1),
    tasks={"induction_heads": 64, "selective_copying": 32},
    lengths=(32, 64, 128, 256, 512, 1024),
    batch_rows=32,
    most_steps=1000,
    learning_rate=3e-3,
    examples=100,
)

SMOKE_SIZE = Size(vocab_size=8192, width=48, num_layers=3, head_size=16, window_tokens=8)
SMOKE_TEXT = dataclasses.replace(
    TEXT,
    size=SMOKE_SIZE,
    num_documents=40,
    row_tokens=16,
    batch_rows=2,
    steps=2,
    held_out_tokens=64,
    long_texts=2,
    phonebook_lengths=(128,),
    phonebook_examples=2,
)
SMOKE_RECALL = dataclasses.replace(
    RECALL,
    size=dataclasses.replace(SMOKE_SIZE, vocab_size=16),
    tasks={"induction_heads": 16, "selective_copying": 20},
    lengths=(20, 40),
    batch_rows=2,
    most_steps=3,
    examples=2,
)


def kept(path: Path, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, written to `path` with its settings; read from there where a run before has made it.

    Raises:
        GriffinError: the file was made with other settings.
    """
    if not path.exists():
        content = {"settings": settings, "found": make()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
        os.replace(part, path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["settings"] != settings:
        raise GriffinError(f"{path} was made with other settings", hint="give another WORK")
    return content["found"]


def measure(data: Path, work: Path, num_seeds: int, text: TextScale, recall: RecallScale) -> dict[str, Any]:
    """All runs: `text` and `recall`, a list of results each."""
    pack_sources(data, work, text)
    found: dict[str, list] = {"text": [], "recall": []}

    def run(part: str, name: str, scale: TextScale | RecallScale, make: Callable[[], dict], **labels: Any) -> None:
        print(f"{datetime.datetime.now():%H:%M:%S} {name}", file=sys.stderr)
        # As JSON has them, so that they compare with those of a file.
        settings = json.loads(json.dumps(dataclasses.asdict(scale)))
        found[part].append({**labels, **kept(work / "results" / f"{name}.json", settings, make)})

    for seed in range(num_seeds):
        for kind in PATTERNS:
            make = partial(train_on_text, kind, seed, work, text)
            run("text", f"text-{kind}-{seed}", text, make, model=kind, seed=seed)
    for seed in range(num_seeds):
        for task in recall.tasks:
            for kind in PATTERNS:
                make = partial(train_on_recall, kind, task, seed, work, recall)
                run("recall", f"{task}-{kind}-{seed}", recall, make, task=task, model=kind, seed=seed)
    return found


def mean_and_spread(values: Iterable[float], digits: int) -> str:
    """Mean, and half of the largest difference between seeds."""
    values = list(values)
    return f"{statistics.mean(values):.{digits}f} ± {(max(values) - min(values)) / 2:.{digits}f}"


def tables(found: dict[str, Any], row_tokens: int) -> str:
    """The results as Markdown: held-out text, long texts by doubling distances, recall by length."""
    bounds = [0, row_tokens, *(row_tokens << shift for shift in range(1, 4))]
    ranges = list(itertools.pairwise(bounds))
    lines = [
        "| model | parameters | " + " | ".join(SHARES) + " | " + " | ".join(f"{a} to {b}" for a, b in ranges) + " |",
        "| --- " * (2 + len(SHARES) + len(ranges)) + "|",
    ]
    for kind in PATTERNS:
        runs = [run for run in found["text"] if run["model"] == kind]
        cells = [f"{runs[0]['parameters']:,}"]
        cells += [mean_and_spread((run["bits_per_byte"][source] for run in runs), 3) for source in SHARES]
        empty = [""] * len(cells)
        for name, bits, before in ((kind, "bits", cells), (f"{kind}, read anew", "bits_read_anew", empty)):
            longer = [mean_and_spread((between(run["long_texts"], bits, *ends) for run in runs), 3) for ends in ranges]
            lines.append(f"| {name} | {' | '.join(before + longer)} |")
    lengths = [length for length, _ in found["recall"][0]["accuracy"]]
    lines += ["", "| task | model | steps | " + " | ".join(map(str, lengths)) + " |"]
    lines.append("| --- " * (3 + len(lengths)) + "|")
    for task, kind in dict.fromkeys((run["task"], run["model"]) for run in found["recall"]):
        runs = [run for run in found["recall"] if (run["task"], run["model"]) == (task, kind)]
        shares = zip(*([share for _, share in run["accuracy"]] for run in runs), strict=True)
        steps = ", ".join(f"{run['steps']:,}" for run in runs)
        lines.append(f"| {task} | {kind} | {steps} | {' | '.join(mean_and_spread(one, 2) for one in shares)} |")
    return "\n".join(lines)


def between(long_texts: dict[str, Any], bits: str, first: int, end: int) -> float:
    """Bits per byte of all sources' tokens from position `first` up to `end`."""
    total = {bits: 0.0, "bytes": 0.0}
    for sums in long_texts.values():
        for name in total:
            total[name] += sum(v for p, v in zip(sums["positions"], sums[name], strict=True) if first <= p < end)
    return total[bits] / total["bytes"]


def settings(text: TextScale, recall: RecallScale) -> dict[str, Any]:
    """Of a run, for its record."""
    return {
        "torch": torch.__version__,
        "text_settings": dataclasses.asdict(text),
        "recall_settings": dataclasses.asdict(recall),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of the text")
    parser.add_argument("work", type=Path, help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=2, help="runs of every model (default: 2)")
    parser.add_argument("--smoke", action="store_true", help="tiny models: shows in a minute that everything runs")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-baselines.json")
    options = parser.parse_args(arguments)
    text, recall = (SMOKE_TEXT, SMOKE_RECALL) if options.smoke else (TEXT, RECALL)
    try:
        if options.seeds < 1:
            raise GriffinError(f"--seeds is {options.seeds}; it must be at least 1")
        found = measure(options.data, options.work, options.seeds, text, recall)
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    if options.out is not None:
        told = ["DATA", "WORK", "--seeds", str(options.seeds), "--out", "benchmarks/results"]
        report = {**header("recipes/baselines.py", told), **settings(text, recall), **found}
        write(report, "baselines", options.out)
    print(tables(found, text.row_tokens))
    return 0


if __name__ == "__main__":
    sys.exit(main())
