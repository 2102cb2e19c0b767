"""What training under fake quantization gains: the bundled model in int4 before it, after it, and after plain training.

    python recipes/quantization_aware_eyas.py DATA WORK --steps 100

DATA holds pretrain/. Runs of equal steps go on from the bundled model, on the same rows: one in float32, one whose
forward pass sees int4 weights, and one that sees them and learns the probabilities of the bundled model itself instead
of the next token. WORK gets the runs and `figures.json`; runs go on where they were cut off.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from corpus import documents

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_quantized
from griffinlm.evaluate.bits_per_byte import evaluate_documents
from griffinlm.loading import find_model
from griffinlm.quantization import RECIPES
from griffinlm.train.config import read_pretrain_config
from griffinlm.train.pretrain import pretrain

NUM_TRAINING_DOCUMENTS = {"tinystories": 3000, "wiki_simple": 600, "books": 12}
MAX_DOCUMENT_CHARACTERS = 8000
GRID = "quantization_aware=int4"

RUN = """
output = "{output}"
tokenizer = "{eyas}"
batch_rows = 8
precision = "{precision}"
device = "cpu"
log_every_steps = 10

[model]
directory = "{eyas}"

[sources]
tinystories.files = ["tinystories.jsonl"]
wiki_simple.files = ["wiki_simple.jsonl"]
books.files = ["books.jsonl"]

[data]
row_tokens = 512
held_out_share = 0.0

[[stages]]
steps = {steps}
mixture = {{ tinystories = 0.4, wiki_simple = 0.35, books = 0.25 }}

[optimizer]
learning_rate = {learning_rate}
weight_decay = 0.0

[schedule]
warm_up_steps = 10
final_share = 0.02

[checkpoints]
every_steps = 50
"""


def write_training_text(data: Path, work: Path) -> None:
    """Documents that the bundled model was trained on too, so that neither run learns of anything new."""
    for source, number in NUM_TRAINING_DOCUMENTS.items():
        path = work / f"{source}.jsonl"
        if not path.exists():
            texts = islice(documents(data, source, held_out=False), number)
            path.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), encoding="utf-8")


def trained(work: Path, name: str, options: argparse.Namespace, *changes: str) -> Path:
    """The model of a run; made where it is not there yet."""
    path = work / f"{name}.toml"
    eyas = find_model("eyas")
    values = {"output": name, "eyas": eyas, "steps": options.steps, "learning_rate": options.learning_rate}
    values["precision"] = options.precision
    path.write_text(RUN.format(**values), encoding="utf-8")
    model = work / name / "model"
    return model if model.exists() else pretrain(read_pretrain_config(path, changes)).model


def held_out(data: Path, num_bytes: int) -> Iterator[str]:
    """Beginnings of held-out documents, so many bytes of every source."""
    for source in NUM_TRAINING_DOCUMENTS:
        left = num_bytes
        for text in documents(data, source, held_out=True):
            yield text[:MAX_DOCUMENT_CHARACTERS]
            left -= len(text[:MAX_DOCUMENT_CHARACTERS].encode())
            if left <= 0:
                break


def bits_per_byte(model: Path, work: Path, texts: list[str]) -> dict[str, float]:
    """Of a model in float32, and of its int4 copy, which is kept in WORK; both by the onnx engine."""
    quantized = work / f"{model.parent.name}-int4"
    if not quantized.exists():
        write_quantized(open_checkpoint(model), RECIPES["int4"], quantized)
    places = {"float32": model, "int4": quantized}
    return {
        name: evaluate_documents(griffinlm.load(place, engine="onnx"), texts, len(texts)).bits_per_byte
        for name, place in places.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="directory of the text")
    parser.add_argument("work", type=Path, help="directory of the runs")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of 4,096 tokens (default: 100)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="(default: 3e-4)")
    parser.add_argument("--second-steps", type=int, default=0, help="a second taught run that goes on from the first")
    parser.add_argument("--second-learning-rate", type=float, default=1e-4, help="(default: 1e-4)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="(default: float32)")
    parser.add_argument("--bytes", type=int, default=100_000, help="held-out bytes of each source (default: 100000)")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write_training_text(options.data, options.work)
    texts = list(held_out(options.data, options.bytes))
    teacher = f"teacher={find_model('eyas')}"
    models = {
        "eyas": find_model("eyas"),
        "trained on in float32": trained(options.work, "float32", options),
        "trained on under int4": trained(options.work, "int4", options, GRID),
        "taught by itself under int4": trained(options.work, "taught", options, GRID, teacher),
    }
    if options.second_steps:
        second = argparse.Namespace(
            steps=options.second_steps, learning_rate=options.second_learning_rate, precision=options.precision
        )
        first = f"model.directory={models['taught by itself under int4']}"
        models["taught twice"] = trained(options.work, "taught-twice", second, GRID, teacher, first, "seed=1")
    figures = {name: bits_per_byte(model, options.work, texts) for name, model in models.items()}
    (options.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    eyas, plain, *aware = figures.values()
    print("| weights | float32 | int4 | int4 over float32 |\n| --- | --- | --- | --- |")
    for name, row in figures.items():
        print(f"| {name} | {row['float32']:.4f} | {row['int4']:.4f} | {row['int4'] / row['float32'] - 1:+.2%} |")
    for base, what in ((eyas, "before"), (plain, "after as many steps in float32")):
        lost, left = base["int4"] - base["float32"], [row["int4"] - eyas["float32"] for row in aware]
        shares = ", ".join(f"{one:.4f} ({one / lost:.0%})" for one in left)
        print(f"int4 loses {lost:.4f} bits per byte {what}; over the bundled model in float32 are left: {shares}")


if __name__ == "__main__":
    main()
