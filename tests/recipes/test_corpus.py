"""What eyas is trained on quotes nothing that it is measured with."""

import json
import lzma
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import corpus

DRAW = random.Random(0)
WORDS = [f"hawk{number}" for number in range(500)]


def text(num_words: int = 60) -> str:
    return " ".join(DRAW.choices(WORDS, k=num_words))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two hundred documents of every source, and a conversation about each."""
    turns = []
    for source in corpus.PRETRAIN_SOURCES:
        kinds = ("v1-valid", "v1-train")
        found = [{"text": text(), "source": kinds[number % 10 > 0], "name": f"{number}"} for number in range(200)]
        write(tmp_path / "pretrain" / f"{source}.jsonl.xz", found)
        quotes = (" ".join(row["text"].split()[20:40]) for row in found)
        turns += [[{"role": "user", "content": f"{source}: {quote}!"}] for quote in quotes]
    write(tmp_path / "sft" / "sft_mix.jsonl.xz", [{"messages": messages} for messages in turns])
    return tmp_path


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lzma.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


@pytest.mark.parametrize("source", corpus.PRETRAIN_SOURCES)
def test_every_source_has_documents_that_are_held_out_and_none_is_both(data, source):
    held_out, trained = (set(corpus.documents(data, source, held_out=out)) for out in (True, False))
    assert held_out
    assert len(held_out) + len(trained) == 200
    assert len(held_out) < len(trained)


def test_no_conversation_quotes_a_held_out_document(data):
    runs = corpus.held_out_runs(data)
    found = [messages[0]["content"] for messages in corpus.conversations(data)]
    assert not any(run in runs for content in found for run in corpus.word_runs(content))
    about = {source: sum(content.startswith(f"{source}:") for content in found) for source in corpus.PRETRAIN_SOURCES}
    for source, number in about.items():
        num_held_out = 0 if source == "tinystories" else len(list(corpus.documents(data, source, held_out=True)))
        assert 0 < number <= 200 - num_held_out


def test_a_run_is_found_in_other_case_and_between_other_marks():
    words = [f"w{number}" for number in range(13)]
    assert list(corpus.word_runs(" ".join(words))) == list(corpus.word_runs("“" + ", ".join(words).upper() + "!”"))
    assert not list(corpus.word_runs(" ".join(words[1:])))
