"""Training a baseline on text, and its bits per byte by position in texts longer than its training rows."""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baseline_models import Size, baseline

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.evaluate.documents import read_documents
from griffinlm.evaluate.recall import evaluate_recall
from griffinlm.loading import find_model
from griffinlm.text import Tokenizer
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
from griffinlm.train.data.pack import PackOptions, is_held_out, pack
from griffinlm.train.pretrain import pretrain
from griffinlm.train.trainer import LOG_FILE

SHARES = {"tinystories": 0.2, "wiki_simple": 0.4, "books": 0.4}
LONG_SOURCES = ("wiki_simple", "books")
"""Sources with documents many times as long as a training row."""
DOCUMENT_CHARACTERS = 60_000
"""Of a document; so that a book is one voice among many."""
HELD_OUT_SHARE = 0.05
EXTRAPOLATION = 8
BINS_A_ROW = 4
"""Bits per byte are kept for every quarter of a training row."""


@dataclass(frozen=True)
class TextScale:
    """How much is trained and measured."""

    size: Size
    num_documents: int
    """Most documents of a source."""
    row_tokens: int
    batch_rows: int
    steps: int
    learning_rate: float
    held_out_tokens: int
    """Most tokens of a source whose bits per byte are measured."""
    long_texts: int
    """Most texts of a source that are read beyond the training length."""
    phonebook_lengths: tuple[int, ...]
    phonebook_examples: int


def pack_sources(data: Path, work: Path, scale: TextScale) -> None:
    """Token files of every source in WORK/tokens, their text beside them.

    Raises:
        GriffinError: the text cannot be read.
    """
    options = PackOptions(held_out_share=HELD_OUT_SHARE)
    for source in SHARES:
        destination = work / "tokens" / source
        if not destination.exists():
            texts = read_documents(data / "pretrain" / f"{source}.jsonl.xz")
            path = _text_file(work, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                for text in itertools.islice(texts, scale.num_documents):
                    print(json.dumps({"text": text[:DOCUMENT_CHARACTERS]}), file=file)
            pack([path], find_model("eyas"), destination, options)


def train_on_text(kind: str, seed: int, work: Path, scale: TextScale) -> dict[str, Any]:
    """Trains a baseline; a run that was cut off goes on from its last checkpoint.

    Returns:
        `parameters`, `tokens` read, the training `losses` in nats a token by step, `bits_per_byte` of held-out text in
        rows of the training length, `long_texts`: bits and bytes by source and position, and `phonebook`: accuracy by
        length.
    """
    config = run_config(kind, seed, work, scale)
    directory = config.output / "model"
    if not directory.exists():
        pretrain(config)
    entries = [json.loads(line) for line in (config.output / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    logged = {name: value for entry in entries for name, value in entry.items()}
    model = griffinlm.load(directory, threads=torch.get_num_threads())
    books = evaluate_recall(model, ["phonebook"], scale.phonebook_lengths, scale.phonebook_examples)
    return {
        "parameters": model.config.num_parameters,
        "tokens": config.num_steps * config.step_tokens,
        "losses": [[entry["step"], round(entry["loss"], 4)] for entry in entries if "loss" in entry],
        "bits_per_byte": {source: round(logged[f"eval_{source}_bits_per_byte"], 4) for source in SHARES},
        "long_texts": {s: bits_by_position(model, long_texts(work, s, scale), scale) for s in LONG_SOURCES},
        "phonebook": [[figure.length, figure.accuracy] for figure in books],
    }


def run_config(kind: str, seed: int, work: Path, scale: TextScale) -> PretrainConfig:
    """The pretraining run of one model; all but the model is the same for all of a seed."""
    return PretrainConfig(
        output=work / "runs" / f"{kind}-{seed}",
        tokenizer=find_model("eyas"),
        model=baseline(kind, scale.size).to_dict(),
        sources={source: SourceConfig(packed=work / "tokens" / source) for source in SHARES},
        data=DataConfig(scale.row_tokens, HELD_OUT_SHARE),
        batch_rows=scale.batch_rows,
        stages=(StageConfig(scale.steps, SHARES),),
        optimizer=OptimizerConfig(scale.learning_rate),
        schedule=ScheduleConfig("cosine", warm_up_steps=scale.steps // 20, final_share=0.1),
        evaluation=EvaluationConfig(max_tokens=scale.held_out_tokens),
        checkpoints=CheckpointConfig(every_steps=100, num_kept=1),
        loss_chunk_tokens=256,  # logits that fit into a processor's cache
        seed=seed,
    )


def long_texts(work: Path, source: str, scale: TextScale) -> list[list[int]]:
    """Token ids of held-out texts, BOS and `EXTRAPOLATION` training rows each.

    Raises:
        GriffinError: no held-out document is that long.
    """
    tokenizer, num_tokens = Tokenizer.from_directory(find_model("eyas")), EXTRAPOLATION * scale.row_tokens
    texts = list(itertools.islice(_pieces(work, source, tokenizer, num_tokens), scale.long_texts))
    if not texts:
        raise GriffinError(f"no held-out document of {source} has {num_tokens} tokens; at least one must")
    return texts


def _pieces(work: Path, source: str, tokenizer: Tokenizer, num_tokens: int) -> Iterator[list[int]]:
    assert tokenizer.bos_id is not None
    for text in read_documents(_text_file(work, source)):
        if is_held_out(text, HELD_OUT_SHARE):
            ids = tokenizer.encode(text)
            for start in range(0, len(ids) - num_tokens + 1, num_tokens):
                yield [tokenizer.bos_id, *ids[start : start + num_tokens]]


def bits_by_position(model: griffinlm.LanguageModel, texts: list[list[int]], scale: TextScale) -> dict[str, list]:
    """Sums over texts by position: for every bin its first position, bits and bytes.

    A token's `bits` are -log2 p(token | BOS and all before it in its text); for `bits_read_anew` the model forgets at
    the end of every training row, and goes on with BOS.
    """
    bin_tokens = scale.row_tokens // BINS_A_ROW
    starts = range(0, EXTRAPOLATION * scale.row_tokens, bin_tokens)
    sums = {"positions": np.array(starts), **{name: np.zeros(len(starts)) for name in ("bits", "bits_read_anew")}}
    num_bytes = np.zeros(len(starts), np.int64)
    for bos_id, *ids in texts:
        rows = [ids[start : start + scale.row_tokens] for start in range(0, len(ids), scale.row_tokens)]
        anew = np.concatenate([model.score([bos_id, *row]) for row in rows])
        for name, scores in (("bits", model.score([bos_id, *ids])), ("bits_read_anew", anew)):
            sums[name] -= scores.reshape(-1, bin_tokens).sum(axis=1) / math.log(2.0)
        num_bytes += [len(model.tokenizer.decode(ids[start : start + bin_tokens]).encode("utf-8")) for start in starts]
    return {name: values.round(1).tolist() for name, values in (sums | {"bytes": num_bytes}).items()}


def _text_file(work: Path, source: str) -> Path:
    return work / "text" / f"{source}.jsonl"
