"""Conversations as examples: the labels are what the model writes, and a bad row is told with its line."""

import json
import lzma
from pathlib import Path

import pytest

from griffinlm.evaluate.documents import DocumentError, RowRules
from griffinlm.text import Tokenizer, TokenizerError
from griffinlm.train.data.conversations import Example, RowFields, encode_conversation, read_conversations
from griffinlm.train.data.token_file import IGNORED

TURNS = [
    {"role": "user", "content": "the hawk"},
    {"role": "assistant", "content": "and the griffin"},
    {"role": "user", "content": "do they grow?"},
    {"role": "assistant", "content": "  they do not <end_of_turn> grow "},
]
MESSAGES = RowFields()


@pytest.fixture
def tokenizer(tiny_tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_tokenizer_directory)


def write(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


def read(path: Path, tokenizer: Tokenizer, fields: RowFields = MESSAGES, **rules: object) -> list[Example]:
    options = RowRules(allow_empty=False, **rules)
    return [example for _, example in read_conversations(path, fields, tokenizer, options)]


def test_labels_are_what_the_model_writes_when_asked_with_the_conversation_so_far(tokenizer: Tokenizer):
    tokens, labels = encode_conversation(tokenizer, TURNS)
    assert tokens == tokenizer.encode_chat(TURNS, add_generation_prompt=False)
    expected = [IGNORED] * len(tokens)
    for index, answer in ((1, "and the griffin"), (3, "they do not <end_of_turn> grow")):
        start = len(tokenizer.encode_chat(TURNS[:index]))
        written = [*tokenizer.encode(answer), tokenizer.encode_chat(TURNS, False)[-2]]
        assert written[-1] in tokenizer.end_ids
        expected[start : start + len(written)] = written
    assert labels == expected


def test_labels_within_a_number_of_tokens_are_those_of_the_whole_conversation_and_cost_no_square(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    conversation = [*TURNS[:2]] * 300
    sizes, encode_chat = [], tokenizer.encode_chat

    def counted(messages: list, add_generation_prompt: bool = True) -> list[int]:
        sizes.append(len(messages))
        return encode_chat(messages, add_generation_prompt)

    monkeypatch.setattr(tokenizer, "encode_chat", counted)
    found = encode_conversation(tokenizer, conversation, 100)
    assert sum(sizes) < 2 * len(conversation)
    assert found.cut_to(100) == encode_conversation(tokenizer, conversation[:20]).cut_to(100)
    assert len(found.tokens) == len(found.labels) == len(encode_chat(conversation, False))


def test_a_system_message_and_the_users_words_are_no_labels(tokenizer: Tokenizer):
    messages = [{"role": "system", "content": "be brief"}, *TURNS[:2]]
    tokens, labels = encode_conversation(tokenizer, messages)
    learned = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(learned) == "and the griffin"
    assert all(label in (IGNORED, token) for token, label in zip(tokens, labels, strict=True))


def test_a_template_that_rewrites_earlier_turns_is_refused(tiny_tokenizer_directory: Path, tmp_path: Path):
    for file in tiny_tokenizer_directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    template = "{{ messages | length }}{% for m in messages %}<start_of_turn>{{ m.content }}<end_of_turn>{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"messages\[1\] cannot be told apart"):
        encode_conversation(Tokenizer.from_directory(tmp_path), TURNS)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.xz"])
def test_rows_of_messages_and_rows_of_pairs_give_the_same_examples(tokenizer: Tokenizer, tmp_path: Path, name: str):
    expected = [encode_conversation(tokenizer, TURNS[:2])]
    messages = write(tmp_path / name, {"source": "a", "messages": [{**turn, "id": 1} for turn in TURNS[:2]]})
    assert read(messages, tokenizer) == expected
    pairs = write(tmp_path / f"pairs-{name}", {"en": "hawk", "fr": "and the griffin"})
    assert read(pairs, tokenizer, RowFields(prompt="en", answer="fr", instruction="the ")) == expected


def row_of(*turns: tuple[str, object]) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}).encode()


BAD_ROWS = {
    b"": "the row is empty",
    b"{": "the row is no JSON",
    b"\xff": "it is not UTF-8",
    b'"text"': "the row is a str; it must be a table",
    b'{"text": "a"}': '"messages" is missing; it must be a list of messages',
    b'{"messages": []}': '"messages" is empty; it must be a list of messages',
    b'{"messages": [{"role": "user"}]}': r'"messages"\[0\] must be a table with role and content',
    b'{"messages": [{"role": "user", "content": "a"}]}': '"messages" has no text of the assistant\'s',
    b'{"messages": [{"role": "assistant", "content": "a"}]}': "the chat template refuses the messages",
    row_of(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " ")): (
        r'"messages"\[3\] is empty; the assistant would learn to say nothing'
    ),
    row_of(("user", "a"), ("tool", "b"), ("assistant", "c")): (
        "the chat template refuses the messages: role tool is unknown"
    ),
    row_of(("user", "a"), ("user", "b"), ("assistant", "c")): (
        "the chat template refuses the messages: a message has role user where assistant is due"
    ),
    row_of(("user", "a"), ("assistant", ["b"])): r'"messages"\[1\] must be a table with role and content',
    row_of(("user", "\ud800"), ("assistant", "b")): r'"messages"\[0\] holds half a surrogate pair',
    b'{"messages": "' + b"a" * 600 + b'"}': "the row is longer than 500 bytes",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:40].decode("latin-1"))
def test_a_bad_row_is_told_with_its_line_and_refused_or_skipped(row: bytes, tokenizer: Tokenizer, tmp_path: Path):
    good = {"messages": TURNS[:2]}
    path = write(tmp_path / "rows.jsonl", good, row, good)
    with pytest.raises(DocumentError, match=f"rows.jsonl, line 2: {BAD_ROWS[row]}"):
        read(path, tokenizer, largest_row_bytes=500)
    told: list[DocumentError] = []
    assert len(read(path, tokenizer, largest_row_bytes=500, on_bad_row=told.append)) == 2
    assert ["line 2" in str(error) for error in told] == [True]


@pytest.mark.parametrize("row", [{"en": "Go."}, {"en": "", "fr": "Va !"}, {"en": 3, "fr": "Va !"}])
def test_a_pair_without_text_is_told_with_the_name_of_the_field(row: dict, tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(DocumentError, match=r'line 1: "(en|fr)" is (missing|empty|a int); it must be text'):
        read(write(tmp_path / "rows.jsonl", row), tokenizer, RowFields(prompt="en", answer="fr"))


def test_a_pair_with_half_a_surrogate_pair_is_told(tokenizer: Tokenizer, tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", {"en": "Go.", "fr": "\udc00"})
    with pytest.raises(DocumentError, match='line 1: "fr" holds half a surrogate pair, which is no character'):
        read(path, tokenizer, RowFields(prompt="en", answer="fr"))
