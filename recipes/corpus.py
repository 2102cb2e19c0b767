"""The text that eyas is made of: documents of every source, and which of them are held out."""

import hashlib
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

PRETRAIN_SOURCES = ("wiki_simple", "books", "children_books", "fairytale_stories", "storybooks", "tinystories")

HELD_OUT_SHARE = 0.01
HELD_OUT_SHARES = {"children_books": 0.03, "fairytale_stories": 0.06, "storybooks": 0.04}
"""Of the sources that have few documents."""
IN_ANOTHER_BOOK = ("remarkable-rocket",)
"""Tales that would be held out, were they not in a children's book that is trained on."""
RUN_WORDS = 13
"""Words in a row that two texts share only where one quotes the other."""


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
    share = HELD_OUT_SHARES.get(source, HELD_OUT_SHARE)
    for row in rows(data / "pretrain" / f"{source}.jsonl.xz"):
        if source == "tinystories":
            out = row["source"] == "v1-valid"
        else:
            out = is_held_out(row["text"], share) and row.get("name") not in IN_ANOTHER_BOOK
        if out == held_out:
            yield row["text"]


def word_runs(text: str) -> Iterator[int]:
    """A number for every run of `RUN_WORDS` words, whatever stands between them."""
    words = re.findall(r"\w+", text.lower())
    return (hash(tuple(words[i : i + RUN_WORDS])) for i in range(len(words) - RUN_WORDS + 1))


def held_out_runs(data: Path) -> set[int]:
    """The word runs of all held-out documents but TinyStories', whose stock phrases every story has."""
    texts = (documents(data, source, held_out=True) for source in PRETRAIN_SOURCES if source != "tinystories")
    return {run for of_source in texts for text in of_source for run in word_runs(text)}


def is_trained_on(messages: Sequence[dict[str, str]], runs: set[int]) -> bool:
    """Whether pretraining has a conversation: a hash of its text says so, and it quotes no held-out document.

    Args:
        runs: as `held_out_runs` gives them.
    """
    if is_held_out("\n".join(message["content"] for message in messages)):
        return False
    return not any(run in runs for message in messages for run in word_runs(message["content"]))


def conversations(data: Path) -> Iterator[list[dict[str, str]]]:
    """Training conversations, each a list of messages with `role` and `content`."""
    runs = held_out_runs(data)
    for row in rows(data / "sft" / "sft_mix.jsonl.xz"):
        if is_trained_on(row["messages"], runs):
            yield row["messages"]
