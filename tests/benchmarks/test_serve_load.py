"""The load runs from the command line on small models; what it counts is what the clients saw."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.text import Tokenizer

for module in ("fastapi", "httpx", "onnxruntime"):
    pytest.importorskip(module)

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KINDS = {"question", "document", "history sent again", "history by id"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BENCHMARKS / "serve_load.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def load(monkeypatch):
    """Modules of the benchmark by name."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_smoke_run_measures_or_says_why_not(tmp_path):
    done = run("--smoke", "--threads", "1", "--json", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    (written,) = tmp_path.iterdir()
    assert written.name.endswith(f"-{report['date']}-serve_load.json")
    assert json.loads(written.read_text(encoding="utf-8")) == report
    rows = {row["server"]: row for row in report["servers"]}
    assert all(rows[name]["status"] == "measured" for name in ("griffin eyas", "griffin int4", "griffin int8")), rows
    for row in rows.values():
        if row["status"] == "skipped":
            assert "No module named" in row["reason"]
            continue
        assert set(row["first_token"]) == KINDS
        assert sum(found["count"] for found in row["first_token"].values()) == row["answers"]
        assert row["between_tokens"]["median_ms"] <= row["between_tokens"]["percentile_99_ms"]
        assert row["memory"][0]["bytes"] == row["resident_bytes"]["first"] > 10**7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--clients", "0"), "--clients is 0"),
        (("--only", "nginx"), "--only is 'nginx'"),
        (("--python-for", "transformers=x"), "one of griffinlm, llama_cpp"),
    ],
)
def test_refuses_what_it_cannot_measure(arguments: tuple[str, ...], message: str):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def test_the_sizes_of_chats_depend_on_the_seed_and_not_on_the_words(load):
    draw = load("serving.chats").draw_chats
    long, letters = draw(12, ["hawk", "owl"], " ", 3), draw(12, list("abcdefgh"), "", 3)
    assert [[len(text.split()) for text in chat.messages] for chat in long] == [
        [len(text) for text in chat.messages] for chat in letters
    ]
    assert [chat.max_tokens for chat in long] == [chat.max_tokens for chat in letters]
    assert draw(12, ["hawk", "owl"], " ", 3) == long != draw(12, ["hawk", "owl"], " ", 4)


def test_every_character_is_a_token_of_the_random_models(load, tmp_path):
    load("serving.servers").write_tokenizer(1000, tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_directory(tmp_path)
    letters = load("peers.characters").letters(1000)
    assert tokenizer.vocab_size == 1000
    text = "".join(letters) + "user\nmodel {~}"
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text + "é")) == text + "é"
    turn = tokenizer.encode_chat([{"role": "user", "content": letters[0]}])
    assert len(turn) == len(["<bos>", "<start>", *"user\n", letters[0], "<end>", "\n", "<start>", *"model\n"])


def test_a_summary_joins_the_answers_of_all_clients(load):
    answer = load("serving.client").Answer
    answers = [answer("question", 0.1, (0.01, 0.03), 3), answer("document", 2.0, (), 1), answer("question", 0.3, (), 1)]
    found = load("serve_load").summary(answers, seconds=2.5)
    assert (found["answers"], found["tokens"], found["tokens_per_second"]) == (3, 5, 2.0)
    assert found["first_token"]["question"]["median_ms"] == 200
    assert found["first_token"]["document"]["most_ms"] == 2000
    assert (found["between_tokens"]["count"], found["between_tokens"]["median_ms"]) == (2, 20)
