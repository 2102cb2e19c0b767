"""The text that eyas is made of: documents of every source, and which of them are held out."""

import hashlib
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

PRETRAIN_SOURCES = ("wiki_simple", "books", "children_books", "fairytale_stories", "storybooks", "tinystories")

HELD_OUT_SHARE = 0.01


def is_held_out(text: str, share: float = HELD_OUT_SHARE) -> bool:
    """Whether a document stays out of training: about 1%, chosen by its text, so that packing does not matter.

    Those of a smaller share are among those of a larger one.
    """
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


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


def conversations(data: Path) -> Iterator[list[dict[str, str]]]:
    """Training conversations, each a list of messages with `role` and `content`.

    They quote documents of other sources, held-out ones among them: see `model_card.QUOTED_IN_CHAT`.
    """
    for row in rows(data / "sft" / "sft_mix.jsonl.xz"):
        if not is_held_out("\n".join(message["content"] for message in row["messages"])):
            yield row["messages"]
