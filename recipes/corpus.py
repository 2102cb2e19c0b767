"""The text that eyas is made of: documents of every source, and which of them are held out."""

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

PRETRAIN_SOURCES = ("wiki_simple", "books", "children_books", "fairytale_stories", "storybooks", "tinystories")

HELD_OUT_SHARE = 0.01


def is_held_out(text: str) -> bool:
    """Whether a document stays out of training: about 1%, chosen by its text, so that packing does not matter."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def rows(path: Path) -> Iterator[dict]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def documents(data: Path, source: str, *, held_out: bool) -> Iterator[str]:
    """Texts of one pretraining source. TinyStories holds out the rows of its public validation set."""
    for row in rows(data / "pretrain" / f"{source}.jsonl.xz"):
        out = row["source"] == "v1-valid" if source == "tinystories" else is_held_out(row["text"])
        if out == held_out:
            yield row["text"]


def chat_documents(data: Path, *, held_out: bool) -> Iterator[str]:
    """Conversations as plain text in Gemma's form, without control tokens: for learning merges only."""
    for row in rows(data / "sft" / "sft_mix.jsonl.xz"):
        text = "\n".join(message["content"] for message in row["messages"])
        if is_held_out(text) == held_out:
            yield text
