"""griffin evaluate: the figures of the library for every form of text file."""

import json
import lzma
import math

import pytest

import griffinlm

TEXTS = ["the hawk and the griffin", "", "über den Hügel\n", "they do not grow"]


@pytest.fixture
def rows() -> bytes:
    return "".join(json.dumps({"text": text, "source": 1}) + "\n" for text in TEXTS).encode()


def expected(directory, texts) -> dict[str, float]:
    model = griffinlm.load(directory)
    scores = [model.score(text) for text in texts if text]
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "bits_per_byte": pytest.approx(-sum(float(s.sum()) for s in scores) / math.log(2) / num_bytes),
        "bytes": num_bytes,
        "tokens": sum(map(len, scores)),
        "documents": len(texts),
    }


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.xz", lzma.compress)])
def test_each_row_is_a_document(griffin, tiny_model_directory, tmp_path, rows, name, pack):
    (tmp_path / name).write_bytes(pack(rows))
    run = griffin("evaluate", tiny_model_directory, "--text", tmp_path / name, "--json")
    assert (run.status, run.err) == (0, "")
    assert run.json == expected(tiny_model_directory, TEXTS)


def test_a_text_file_is_one_document(griffin, tiny_model_directory, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the hawk\r\n\nthe hill")
    run = griffin("evaluate", tiny_model_directory, "--text", tmp_path / "a.txt", "--json")
    assert run.json == expected(tiny_model_directory, ["the hawk\r\n\nthe hill"])


def test_limit_takes_the_first_documents(griffin, tiny_model_directory, tmp_path, rows):
    (tmp_path / "a.jsonl").write_bytes(rows + b"no json\n")
    run = griffin("evaluate", tiny_model_directory, "--text", tmp_path / "a.jsonl", "--json", "--limit", "3")
    assert run.json == expected(tiny_model_directory, TEXTS[:3])


def test_plain_output_is_one_line(griffin, tiny_model_directory, tmp_path, rows):
    (tmp_path / "a.jsonl").write_bytes(rows)
    run = griffin("evaluate", tiny_model_directory, "--text", tmp_path / "a.jsonl")
    assert run.err == ""
    assert run.out.count("\n") == 1
    assert "bits per byte" in run.out


def test_documents_without_text_are_refused(griffin, tiny_model_directory, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    assert "no text" in griffin.fails("evaluate", tiny_model_directory, "--text", tmp_path / "a.jsonl")


def test_a_model_without_tokenizer_is_refused(griffin, tiny_model_without_tokenizer, tmp_path, rows):
    (tmp_path / "a.jsonl").write_bytes(rows)
    error = griffin.fails("evaluate", tiny_model_without_tokenizer, "--text", tmp_path / "a.jsonl")
    assert "no tokenizer" in error


def test_a_wrong_row_is_refused_with_file_and_line(griffin, tiny_model_directory, tmp_path, rows):
    (tmp_path / "a.jsonl").write_bytes(rows + b"[1]\n")
    assert "a.jsonl, line 5" in griffin.fails("evaluate", tiny_model_directory, "--text", tmp_path / "a.jsonl")
