"""A turn behind a conversation is written without it, where the template allows that."""

import shutil

import pytest

from griffinlm.serve.turns import Turns
from griffinlm.text import Tokenizer

COUNTING = """{{ bos_token }}{% for m in messages %}{{ loop.length ~ m['content'] ~ '\\n' }}{% endfor %}"""
PLAIN = """{{ bos_token }}{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ '<end_of_turn>' }}{% endfor %}"""


def said(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.fixture
def turns_with(tiny_tokenizer_directory, tmp_path):
    def make(template):
        shutil.copytree(tiny_tokenizer_directory, tmp_path / "tokenizer")
        if template is not None:
            (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
        return Turns(Tokenizer.from_directory(tmp_path / "tokenizer"))

    return make


@pytest.mark.parametrize("template", [None, PLAIN])
def test_tokens_behind_a_conversation_are_those_that_the_whole_has_there(turns_with, template):
    turns = turns_with(template)
    assert turns.is_context_free
    history, messages = said(" the hawk ", "hunts\n\n", "where", "over the hill "), said(" and when? ")
    whole = turns.whole([*history, *messages])
    assert whole == turns.whole(history, False) + turns.behind(messages)


def test_a_template_that_looks_back_is_noticed(turns_with):
    assert not turns_with(COUNTING).is_context_free
