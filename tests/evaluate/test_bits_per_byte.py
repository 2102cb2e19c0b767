"""Bits per byte is the score of the documents over their bytes, whatever their order and company."""

import math

import pytest

import griffinlm
from griffinlm.evaluate.bits_per_byte import EvaluationError, evaluate_documents

DOCUMENTS = ["the hawk and the griffin", "é€😀 and more", "", "x"]


@pytest.fixture(scope="module")
def model(tiny_model_directory):
    return griffinlm.load(tiny_model_directory)


def test_it_is_the_score_over_the_bytes(model):
    found = evaluate_documents(model, DOCUMENTS)
    bits = -sum(model.score(text).sum() for text in DOCUMENTS if text) / math.log(2)
    assert found.bits == pytest.approx(bits)
    assert found.num_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert found.num_tokens == sum(len(model.tokenizer.encode(text)) for text in DOCUMENTS)
    assert found.num_documents == 4
    assert found.bits_per_byte == pytest.approx(bits / found.num_bytes)


def test_order_and_company_do_not_matter(model):
    parts = [evaluate_documents(model, [text]).bits for text in DOCUMENTS if text]
    assert evaluate_documents(model, DOCUMENTS[::-1]).bits == pytest.approx(sum(parts))


def test_no_text_is_refused(model):
    with pytest.raises(EvaluationError, match="no text in the 2 documents"):
        evaluate_documents(model, ["", ""])
