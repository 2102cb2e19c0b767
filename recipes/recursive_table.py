"""The table of Relaxed Recursive Transformers (arXiv 2410.20672) in small: Griffin and the multi-query transformer.

    python recipes/recursive_table.py DATA WORK --seeds 2 --out benchmarks/results

DATA holds pretrain/. A model of each kind is trained on stories; then every row of the table begins from it, or anew,
and reads the same tokens. Every run leaves a file in WORK/results when it is done, and the same command goes on where
it was cut off.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from baseline_models import Size, baseline
from baselines import kept, mean_and_spread
from safetensors.numpy import load_file

from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.config import ModelConfig, RecursionConfig
from griffinlm.errors import GriffinError
from griffinlm.evaluate.documents import read_documents
from griffinlm.evaluate.record import header, write
from griffinlm.loading import find_model
from griffinlm.recursive import Recursion, write_recursive
from griffinlm.recursive.settings import stepwise_layers
from griffinlm.train.config import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from griffinlm.train.data.pack import PackOptions, pack
from griffinlm.train.prefix import PREFIX_FILE
from griffinlm.train.pretrain import pretrain
from griffinlm.train.trainer import LOG_FILE

KINDS = ("griffin", "mqa")
SOURCE = "tinystories"
HELD_OUT_SHARE = 0.03
NUM_LOOPS = 2
TEACHER_SHARE = 0.5


@dataclass(frozen=True)
class Row:
    """How a model of the table begins, and what it learns from."""

    begins: str
    """full: as the trained model; random or inherited: half the layers, drawn anew or taken at regular distances;
    recursive: by `recursion`."""
    recursion: Recursion | None = None
    is_distilled: bool = False
    """Whether it learns from the model of the row `full`, too."""
    prefix_tokens: int | None = None
    """As in `PretrainConfig`."""


def _loops(init: str, rank: int = 0, low_rank: str = "svd", **learning: Any) -> Row:
    # The paper shares everything, norms included.
    return Row("recursive", Recursion(NUM_LOOPS, init, rank, "all", low_rank), **learning)  # pyright: ignore[reportArgumentType]


ROWS = {
    "full": Row("full"),
    "reduced, from scratch": Row("random"),
    "reduced, inherited layers": Row("inherited"),
    "stepwise": _loops("stepwise"),
    "average": _loops("average"),
    "lower": _loops("lower"),
    "average, rank 8": _loops("average", 8),
    "average, rank 32": _loops("average", 32),
    "average, rank 32 from zero": _loops("average", 32, "zero"),
    "stepwise, distilled": _loops("stepwise", is_distilled=True),
    "average, rank 32, distilled": _loops("average", 32, is_distilled=True),
    "stepwise, prefix 32": _loops("stepwise", prefix_tokens=32),
    "average, prefix 32": _loops("average", prefix_tokens=32),
}
PAPER = (
    ("full", "average, rank 32"),
    ("average, rank 32", "average, rank 8"),
    ("average, rank 8", "stepwise"),
    ("stepwise", "average"),
    ("stepwise", "lower"),
    ("stepwise", "reduced, inherited layers"),
    ("reduced, inherited layers", "reduced, from scratch"),
    ("average, rank 32", "average, rank 32 from zero"),
    ("stepwise, distilled", "stepwise"),
    ("average, rank 32, distilled", "average, rank 32"),
    ("stepwise, prefix 32", "stepwise"),
    ("average, prefix 32", "average"),
    ("average, rank 8", "average, prefix 32"),
)
"""Pairs of rows of which the first is the better one in the paper (Gemma-2B: tables G.2, H.1 and I.2; the reduced model
with inherited layers: table F.3)."""


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured."""

    size: Size
    num_documents: int
    row_tokens: int
    batch_rows: int
    first_steps: int
    """Of the model that the rows begin from."""
    steps: int
    """Of every row."""
    first_learning_rate: float
    learning_rate: float
    held_out_tokens: int


SCALE = Scale(
    Size(vocab_size=8192, width=96, num_layers=6, head_size=32, window_tokens=128),
    num_documents=12_000,
    row_tokens=256,
    batch_rows=4,
    first_steps=500,
    steps=80,
    first_learning_rate=3e-3,
    learning_rate=1.5e-3,
    held_out_tokens=40_000,
)
SMOKE = dataclasses.replace(
    SCALE,
    size=Size(vocab_size=8192, width=48, num_layers=6, head_size=16, window_tokens=8),
    num_documents=100,
    row_tokens=16,
    batch_rows=2,
    first_steps=2,
    steps=2,
    held_out_tokens=64,
)


def pack_stories(data: Path, work: Path, scale: Scale) -> None:
    """Token files of the stories in WORK/tokens, their text beside them."""
    destination = work / "tokens"
    if not destination.exists():
        path = work / "text" / f"{SOURCE}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = read_documents(data / "pretrain" / f"{SOURCE}.jsonl.xz")
        with open(path, "w", encoding="utf-8") as file:
            for text in itertools.islice(texts, scale.num_documents):
                print(json.dumps({"text": text}), file=file)
        pack([path], find_model("eyas"), destination, PackOptions(held_out_share=HELD_OUT_SHARE))


def run_config(work: Path, scale: Scale, name: str, model: dict[str, Any], seed: int, **changes: Any) -> PretrainConfig:
    """A run of so many steps as a row has; all rows of a seed read the same tokens in the same order."""
    steps, rate = (
        (scale.first_steps, scale.first_learning_rate) if name == "first" else (scale.steps, scale.learning_rate)
    )
    return PretrainConfig(
        tokenizer=find_model("eyas"),
        model=model,
        sources={SOURCE: SourceConfig(packed=work / "tokens")},
        data=DataConfig(scale.row_tokens, HELD_OUT_SHARE),
        batch_rows=scale.batch_rows,
        stages=(StageConfig(steps, {SOURCE: 1.0}),),
        optimizer=OptimizerConfig(rate),
        schedule=ScheduleConfig("cosine", warm_up_steps=steps // 20, final_share=0.1),
        evaluation=EvaluationConfig(max_tokens=scale.held_out_tokens),
        checkpoints=CheckpointConfig(every_steps=100, num_kept=1),
        loss_chunk_tokens=256,  # logits that fit into a processor's cache
        # The rows read in another order than the model that they begin from.
        seed=2 * seed + (name != "first"),
        **changes,
    )


def start(row: Row, base: Path, destination: Path) -> dict[str, Any]:
    """The `model` table of a row's run; what it begins from is written to `destination`."""
    checkpoint = open_checkpoint(base)
    half = dataclasses.replace(checkpoint.config, num_layers=checkpoint.config.num_layers // NUM_LOOPS)
    if row.begins == "full":
        return {"directory": str(base)}
    if row.begins == "random":
        return half.to_dict()
    if not destination.exists():
        if row.recursion is not None:
            write_recursive(checkpoint, row.recursion, destination)
        else:
            looped = dataclasses.replace(checkpoint.config, recursion=RecursionConfig(NUM_LOOPS))
            tensors = ((n, checkpoint.tensor(_inherited(n, looped))) for n in half.parameter_shapes())
            write_checkpoint(half, tensors, destination, "griffinlm", None, checkpoint.tokenizer_directory)
    return {"directory": str(destination)}


def _inherited(name: str, looped: ModelConfig) -> str:
    """The parameter of the full model that a parameter of the reduced one is."""
    if not name.startswith("layers."):
        return name
    _, number, rest = name.split(".", 2)
    return f"layers.{stepwise_layers(looped)[int(number)]}.{rest}"


def train_row(kind: str, name: str, seed: int, work: Path, scale: Scale) -> dict[str, Any]:
    """Trains a row of the table; a run that was cut off goes on from its last checkpoint.

    Returns:
        `parameters`, those `not_embedding`, `tokens` read, and `bits_per_byte` of held-out text.
    """
    folder = work / "runs" / f"{kind}-{seed}"
    first = run_config(work, scale, "first", baseline(kind, scale.size).to_dict(), seed, output=folder / "first")
    base = first.output / "model"
    if not base.exists():
        pretrain(first)
    row, output = ROWS[name], folder / re.sub(r"[^a-z0-9]+", "-", name)
    model = start(row, base, output.with_name(f"{output.name}-start"))
    learning = {"teacher": folder / "full" / "model", "teacher_share": TEACHER_SHARE} if row.is_distilled else {}
    if not (output / "model").exists():
        pretrain(run_config(work, scale, name, model, seed, output=output, prefix_tokens=row.prefix_tokens, **learning))
    entries = [json.loads(line) for line in (output / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    logged = {key: value for entry in entries for key, value in entry.items()}
    config = open_checkpoint(output / "model").config
    num_parameters = config.num_parameters
    if row.prefix_tokens is not None:
        num_parameters += num_prefix_parameters(output / PREFIX_FILE, row.prefix_tokens)
    return {
        "parameters": num_parameters,
        "not_embedding": num_parameters - config.num_embedding_parameters,
        "tokens": scale.steps * scale.batch_rows * scale.row_tokens,
        "bits_per_byte": round(logged[f"eval_{SOURCE}_bits_per_byte"], 4),
    }


def num_prefix_parameters(path: Path, num_tokens: int) -> int:
    """Numbers of a prefix: those of its state that can be seen, which leaves out the slots of a ring behind it."""
    blocks = {name: array for name, array in load_file(path).items() if name not in ("num_tokens", "pending")}
    return sum((a[:, :num_tokens] if n.endswith((".keys", ".values")) else a).size for n, a in blocks.items())


def measure(data: Path, work: Path, num_seeds: int, scale: Scale) -> list[dict[str, Any]]:
    """All rows of all seeds and kinds."""
    pack_stories(data, work, scale)
    settings, found = json.loads(json.dumps(dataclasses.asdict(scale))), []
    for seed, kind, name in itertools.product(range(num_seeds), KINDS, ROWS):
        print(f"{datetime.datetime.now():%H:%M:%S} {kind} {seed}: {name}", file=sys.stderr)
        path = work / "results" / f"{kind}-{seed}-{re.sub(r'[^a-z0-9]+', '-', name)}.json"
        result = kept(path, settings, partial(train_row, kind, name, seed, work, scale))
        found.append({"model": kind, "seed": seed, "row": name, **result})
    return found


def of_row(found: Sequence[dict[str, Any]], kind: str, name: str) -> list[dict[str, Any]]:
    """The results of a row, by seed."""
    return [result for result in found if (result["model"], result["row"]) == (kind, name)]


def tables(found: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown: bits per byte of every row, and of every pair of the paper's order whether it holds."""
    lines = [
        "| row | " + " | ".join(f"{kind}: without embedding | bits per byte" for kind in KINDS) + " |",
        "| --- " * (1 + 2 * len(KINDS)) + "|",
    ]
    for name in ROWS:
        cells = []
        for kind in KINDS:
            runs = of_row(found, kind, name)
            cells += [f"{runs[0]['not_embedding']:,}", mean_and_spread((run["bits_per_byte"] for run in runs), 3)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| better in the paper | than | " + " | ".join(KINDS) + " |", "| --- " * (2 + len(KINDS)) + "|"]
    for better, worse in PAPER:
        cells = [_difference(found, kind, better, worse) for kind in KINDS]
        lines.append(f"| {better} | {worse} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(found: Sequence[dict[str, Any]], kind: str, better: str, worse: str) -> str:
    """By how many bits per byte the one is better, and whether that has the paper's sign for all seeds."""
    pairs = zip(of_row(found, kind, better), of_row(found, kind, worse), strict=True)
    gains = [after["bits_per_byte"] - before["bits_per_byte"] for before, after in pairs]
    holds = "holds" if min(gains) > 0 else "does not hold" if max(gains) < 0 else "seeds differ"
    return f"{statistics.mean(gains):+.3f}, {holds}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of the text")
    parser.add_argument("work", type=Path, help="directory of the runs")
    parser.add_argument("--seeds", type=int, default=2, help="runs of every row (default: 2)")
    parser.add_argument("--smoke", action="store_true", help="tiny models: shows in a minute that everything runs")
    parser.add_argument("--out", type=Path, help="directory for <processor>-<date>-recursive_table.json")
    options = parser.parse_args(arguments)
    scale = SMOKE if options.smoke else SCALE
    try:
        if options.seeds < 1:
            raise GriffinError(f"--seeds is {options.seeds}; it must be at least 1")
        found = measure(options.data, options.work, options.seeds, scale)
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    if options.out is not None:
        told = ["DATA", "WORK", "--seeds", str(options.seeds), "--out", "benchmarks/results"]
        rows = {name: dataclasses.asdict(row) for name, row in ROWS.items()}
        settings = {"torch": torch.__version__, "settings": dataclasses.asdict(scale), "rows": rows}
        write(
            {**header("recipes/recursive_table.py", told), **settings, "found": found}, "recursive_table", options.out
        )
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
