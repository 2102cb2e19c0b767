"""Documents of a source into token files, whole or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.evaluate.documents import DocumentError, RowRules, read_documents
from griffinlm.progress import progress
from griffinlm.text import Tokenizer
from griffinlm.train.data.token_file import FORMAT_VERSION, RECORD_FILE, SPLITS, Packed, TokenWriter, open_packed
from griffinlm.train.errors import TrainError

NUM_BAD_ROWS_LISTED = 100
DOCUMENTS_A_BATCH = 64


@dataclass(frozen=True)
class PackOptions:
    """What decides the content of a packed source, beside its files and the tokenizer."""

    field: str = "text"
    held_out_share: float = 0.01
    bad_rows: str = "refuse"
    largest_row_bytes: int = 8_000_000


def is_held_out(text: str, share: float) -> bool:
    """Whether a document stays out of training, chosen by its text alone, so that order and packing do not matter."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def pack(
    files: Iterable[Path],
    tokenizer_directory: Path,
    destination: Path,
    options: PackOptions,
    processes: int = 1,
    report: Callable[[DocumentError], None] | None = None,
) -> Packed:
    """Cuts the documents of `files` into tokens and writes them to the new directory `destination`.

    It holds `train/` and `held_out/`, each with the tokens (uint16, or uint32 for a larger vocabulary), offsets and
    bytes of its documents, and `pack.json`, which says what they were made of.

    Args:
        processes: how many cut text into tokens.
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: a file cannot be read, a bad row is to be refused, the tokenizer has no BOS or EOS, no document
            is left to train on, or the destination cannot be written.
    """
    files = tuple(files)
    tokenizer = Tokenizer.from_directory(tokenizer_directory)
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        lacking = "BOS" if tokenizer.bos_id is None else "EOS"
        raise TrainError(f"the tokenizer in {tokenizer_directory} has no {lacking} token; documents stand between both")
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    told: list[str] = []
    num_bad = 0

    def on_bad_row(error: DocumentError) -> None:
        nonlocal num_bad
        num_bad += 1
        if len(told) < NUM_BAD_ROWS_LISTED:
            told.append(str(error))
        if report is not None:
            report(error)

    rules = RowRules(
        options.field, options.largest_row_bytes, False, on_bad_row if options.bad_rows == "skip" else None
    )
    with new_directory(destination) as directory:
        writers = [TokenWriter(directory / split, dtype, tokenizer.bos_id, tokenizer.eos_id) for split in SPLITS]
        with closing(writers[0]), closing(writers[1]):
            texts = (text for file in files for text in read_documents(file, rules))
            encoded = _encoded(texts, tokenizer, tokenizer_directory, processes)
            for text, ids in progress(encoded, f"packing {destination.name}"):
                writers[is_held_out(text, options.held_out_share)].add(ids, len(text.encode("utf-8")))
        if not writers[0].num_documents:
            raise TrainError(f"all {writers[1].num_documents} documents of {destination.name} are held out")
        record: dict[str, Any] = {
            **identity(files, tokenizer, options),
            "dtype": dtype.name,
            **{
                split: {
                    "num_tokens": writer.num_tokens,
                    "num_documents": writer.num_documents,
                    "num_bytes": writer.num_bytes,
                }
                for split, writer in zip(SPLITS, writers, strict=True)
            },
            "num_bad_rows": num_bad,
            "bad_rows_told": told,
        }
        (directory / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return open_packed(destination)


def identity(files: Iterable[Path], tokenizer: Tokenizer, options: PackOptions) -> dict[str, Any]:
    """What a packed source is made of: equal identities give equal token files.

    Raises:
        TrainError: a file cannot be read.
    """
    return {
        "format_version": FORMAT_VERSION,
        "files": [{"name": file.name, "sha256": _file_digest(file)} for file in files],
        "tokenizer": tokenizer.digest,
        "options": vars(options),
    }


def _file_digest(file: Path) -> str:
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise TrainError(f"text file {file} cannot be read: {error.strerror}") from error


_TOKENIZER: Tokenizer | None = None
"""Of a process that cuts text for another one."""


def _load_tokenizer(directory: Path) -> None:
    global _TOKENIZER
    _TOKENIZER = Tokenizer.from_directory(directory)


def _encode_batch(texts: list[str]) -> list[list[int]]:
    assert _TOKENIZER is not None
    return [_TOKENIZER.encode(text) for text in texts]


def _encoded(
    texts: Iterator[str], tokenizer: Tokenizer, directory: Path, processes: int
) -> Iterator[tuple[str, list[int]]]:
    """Every text with its ids, in order."""
    if processes == 1:
        yield from ((text, tokenizer.encode(text)) for text in texts)
        return
    with ProcessPoolExecutor(processes, initializer=_load_tokenizer, initargs=(directory,)) as pool:
        waiting: list[tuple[list[str], Any]] = []
        while True:
            batch = list(islice(texts, DOCUMENTS_A_BATCH))
            if batch:
                waiting.append((batch, pool.submit(_encode_batch, batch)))
            if not waiting:
                return
            if not batch or len(waiting) > 2 * processes:
                done, future = waiting.pop(0)
                yield from zip(done, future.result(), strict=True)
