"""What quantized weights and narrow windows cost the bundled model: KL, agreement and bits per byte on held-out text.

python recipes/measure_quantization.py DATA --out benchmarks/results
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from corpus import documents

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_quantized
from griffinlm.edge.calibration import input_energy
from griffinlm.evaluate.record import header, write
from griffinlm.loading import find_model
from griffinlm.quantization import RECIPES
from griffinlm.state import state_layout

SOURCES = ("tinystories", "wiki_simple", "books")
NUM_CALIBRATION_DOCUMENTS = 40
MAX_DOCUMENT_TOKENS = 2000

CONFIGURATIONS = (
    ("float32", "float32", False),
    ("int8", "float32", False),
    ("int8-block32", "float32", False),
    ("int4", "float32", False),
    ("int4", "float32", True),
    ("int4-block32", "float32", False),
    ("float32", "float16", False),
    ("float32", "int8", False),
    ("int8", "int8", False),
    ("int4", "int8", False),
)
"""Weights, window, and whether the scales were chosen with a calibration text."""


def log_probabilities(model: griffinlm.LanguageModel, ids: list[int]) -> np.ndarray:
    """log p of every token after every prefix, float64 [tokens, vocab]."""
    logits = model.forward([ids], logits="all")[0]
    assert logits is not None
    shifted = logits[0].astype(np.float64) - logits[0].max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def texts(data: Path, num_bytes: int) -> Iterator[tuple[str, str]]:
    """Held-out documents of every source up to so many bytes, each with its source."""
    for source in SOURCES:
        left = num_bytes
        for text in documents(data, source, held_out=True):
            yield source, text[: 4 * MAX_DOCUMENT_TOKENS]
            left -= len(text[: 4 * MAX_DOCUMENT_TOKENS].encode())
            if left <= 0:
                break


def calibrated(data: Path, directory: Path) -> Path:
    """The bundled model in int4, its scales chosen with training text in view."""
    checkpoint = open_checkpoint(find_model("eyas"))
    model = griffinlm.load("eyas")
    start = [model.tokenizer.bos_id] if model.tokenizer.bos_id is not None else []
    chosen = itertools.islice(documents(data, "tinystories", held_out=False), NUM_CALIBRATION_DOCUMENTS)
    energy = input_energy(checkpoint, [[*start, *model.tokenizer.encode(text)] for text in chosen])
    write_quantized(checkpoint, RECIPES["int4"], directory, energy)
    return directory


def measure(data: Path, num_bytes: int) -> list[dict]:
    """One row a configuration, compared with float32 token by token."""
    rows = []
    with tempfile.TemporaryDirectory() as work:
        other = calibrated(data, Path(work) / "calibrated")
        base = griffinlm.load("eyas", engine="onnx")
        for weights, window, is_calibrated in CONFIGURATIONS:
            if is_calibrated:
                model = griffinlm.load(other, window_dtype=window)
            else:
                model = griffinlm.load("eyas", engine="onnx", weights=weights, window_dtype=window)
            rows.append(
                {
                    "weights": weights,
                    "calibrated": is_calibrated,
                    "window": window,
                    "state_bytes": sum(
                        s.nbytes for s in state_layout(model.config, 1, None, window, "float32").values()
                    ),
                    **compare(base, model, data, num_bytes),
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def compare(base: griffinlm.LanguageModel, model: griffinlm.LanguageModel, data: Path, num_bytes: int) -> dict:
    """KL(base || model) a token in nats, share of tokens with the same best one, bits per byte by source."""
    divergence, agreed, num_tokens = 0.0, 0, 0
    bits: dict[str, float] = dict.fromkeys(SOURCES, 0.0)
    size: dict[str, int] = dict.fromkeys(SOURCES, 0)
    for source, text in texts(data, num_bytes):
        assert base.tokenizer.bos_id is not None
        ids = [base.tokenizer.bos_id, *base.tokenizer.encode(text)]
        expected, found = log_probabilities(base, ids[:-1]), log_probabilities(model, ids[:-1])
        divergence += float((np.exp(expected) * (expected - found)).sum())
        agreed += int((expected.argmax(axis=-1) == found.argmax(axis=-1)).sum())
        num_tokens += len(found)
        bits[source] -= float(found[np.arange(len(found)), ids[1:]].sum()) / math.log(2)
        size[source] += len(text.encode())
    return {
        "kl": divergence / num_tokens,
        "top_1_agreement": agreed / num_tokens,
        "tokens": num_tokens,
        "bits_per_byte": {source: bits[source] / size[source] for source in SOURCES},
        "bits_per_byte_all": sum(bits.values()) / sum(size.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="directory of the text")
    parser.add_argument("--bytes", type=int, default=100_000, help="held-out bytes of each source (default: 100000)")
    parser.add_argument("--out", type=Path, required=True, help="directory for <processor>-<date>-quantization.json")
    options = parser.parse_args()
    rows = measure(options.data, options.bytes)
    report = {**header("recipes/measure_quantization.py", ["DATA", *sys.argv[2:]]), "model": "eyas", "rows": rows}
    write(report, "quantization", options.out)
    print("| weights | window | KL a token | top-1 | bits per byte | change |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        change = row["bits_per_byte_all"] / rows[0]["bits_per_byte_all"] - 1
        name = row["weights"] + (", calibrated" if row["calibrated"] else "")
        print(
            f"| {name} | {row['window']} | {row['kl']:.1e} | {row['top_1_agreement']:.2%} "
            f"| {row['bits_per_byte_all']:.4f} | {change:+.2%} |"
        )


if __name__ == "__main__":
    main()
