"""The page's tokenizer in a real browser: ids and texts are those of Python's."""

import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Site

import griffinlm
from griffinlm.export.page_tokenizer import page_settings
from griffinlm.loading import find_model
from griffinlm.text import Tokenizer

DIRECTORY = find_model("eyas")
SOURCE = Path(griffinlm.__file__).parent / "export" / "web_page"
CHARACTERS = 4096
"""In one text."""

Call = Callable[[str, Any], Any]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(DIRECTORY)


@pytest.fixture(scope="module")
def call(browser, tokenizer) -> Iterator[Call]:
    """Calls a function in a page that has the tokenizer and nothing else; values pass as JSON, lone surrogates too."""
    site, page = Site(SOURCE), browser.new_page()

    def call(function: str, value: Any) -> Any:
        return json.loads(page.evaluate(f"async (text) => JSON.stringify(await ({function})(JSON.parse(text)))", value))

    page.goto(f"{site.url}tokenizer.js")
    content = json.loads((DIRECTORY / "tokenizer.json").read_text(encoding="utf-8"))
    make = """async ([file, settings]) => {
      const { Tokenizer } = await import("/tokenizer.js");
      self.tokenizer = new Tokenizer(file, settings);
      return null;
    }"""
    call(make, json.dumps([content, page_settings(tokenizer, DIRECTORY)]))
    yield lambda function, value: call(function, json.dumps(value))
    page.close()
    site.close()


def random_texts(num_texts: int) -> list[str]:
    """Texts of pieces that tokenizers treat in ways of their own, and of any character."""
    draw = random.Random(0)
    pieces = ["'s", "'ll", "'LL", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u0085", "\ufeff", "\u3000", "1", "23", "½"]
    pieces += ["the", "The", "hawk", "é", "e\u0301", "中文", "नमस्ते", "\U0001f985", "\u200d", "_", "...", "\ud800"]
    pieces += ["a" * 40, "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn", ">", "<", "<<pad>", "\x00", "\x1c"]
    texts = ["".join(draw.choices(pieces, k=draw.randrange(1, 12))) for _ in range(num_texts)]
    return texts + ["".join(chr(draw.randrange(0x110000)) for _ in range(8)) for _ in range(num_texts)]


def test_every_character_has_pythons_tokens(call, tokenizer):
    wrong = []
    # Of the planes behind the fourth, in which hardly anything is assigned, the first characters stand for all.
    for start in (*range(0, 0x40000, CHARACTERS), *range(0x40000, 0x110000, 0x10000)):
        texts = [f"{chr(code)}a " for code in range(start, start + CHARACTERS)]
        if call("(text) => self.tokenizer.encode(text)", "".join(texts)) != tokenizer.encode("".join(texts)):
            found = call("(texts) => texts.map((text) => self.tokenizer.encode(text))", texts)
            wrong += [text[0] for text, ids in zip(texts, found, strict=True) if ids != tokenizer.encode(text)]
    # Each knows its own version of Unicode; a letter that is new to one of them is cut otherwise by the other.
    assert [character for character in wrong if unicodedata.category(character) != "Cn"] == []


def test_texts_have_pythons_tokens(call, tokenizer):
    texts = ["", *random_texts(500), Path(__file__).read_text(encoding="utf-8")]
    found = call("(texts) => texts.map((text) => self.tokenizer.encode(text))", texts)
    assert found == [tokenizer.encode(text) for text in texts]


def test_conversations_have_pythons_tokens(call, tokenizer):
    texts = [
        *random_texts(60),
        *(f"{space}x{space}" for space in ("\x1c\x1d", "\u0085", "\ufeff", "\u3000", "\x00", "\n")),
    ]
    for num_messages in (1, 2, 3):
        conversations = [
            [
                {"role": ("user", "assistant")[turn % 2], "content": texts[(index + turn) % len(texts)]}
                for turn in range(num_messages)
            ]
            for index in range(len(texts))
        ]
        for is_answer_due in (True, False):
            encode = "([all, due]) => all.map((messages) => self.tokenizer.encodeChat(messages, due))"
            found = call(encode, [conversations, is_answer_due])
            assert found == [tokenizer.encode_chat(messages, is_answer_due) for messages in conversations]


def test_ids_have_pythons_text(call, tokenizer):
    draw = random.Random(1)
    all_ids = [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(20))] for _ in range(500)]
    all_ids.append(list(range(tokenizer.vocab_size)))
    decode = """(all) => all.map((ids) => {
      const stream = self.tokenizer.stream();
      return ids.map((id) => stream.push(id)).join("") + stream.finish();
    })"""
    assert call(decode, all_ids) == [tokenizer.decode(ids) for ids in all_ids]
