"""Text to ids and back: equal to the libraries on ordinary text, never a control token on any."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Pipeline

from griffinlm.text import Tokenizer, TokenizerError

from .small_tokenizers import CONTROL, byte_level_pipeline, sentencepiece_model

ORDINARY = [
    "",
    "a",
    " leading and  double   spaces ",
    "\n\nlines\n\n\nand\ttabs \n",
    "12 345, 0.5 and 2024-01-31",
    "Жила-была птица и 昔々 العربية हिन्दी 🐦🏽",
    "<b>html</b> < start_of_turn > [bos] <boss> <0x41>",
    "\x00\x01 \u200b\u00a0\u2028 \ufdd0\U0010ffff",
    "e\u0301 \u00e9 \ufb01",
]
fragments = st.lists(
    st.sampled_from([*CONTROL, "<", ">", "<b", "os>", "<start_of", "_turn>", " ", "\n", "x"]), max_size=8
)
tricky = st.one_of(st.text(), fragments.map("".join), st.tuples(fragments.map("".join), st.text()).map("".join))
"""Any text, and text made of control tokens, their halves and what may stand between them."""


def control_ids(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, *tokenizer.end_ids}


@given(text=tricky)
def test_a_text_decodes_back_to_itself_and_holds_no_control_token(tokenizer, text):
    text = text.replace("\u2581", "")  # SentencePiece itself reads this sign as a space
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not control_ids(tokenizer) & set(ids)


@given(text=tricky)
def test_bytes_of_the_tokens_of_a_text_joined_are_the_text(tokenizer, text):
    text = text.replace("\u2581", "")
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode(text)]
    assert None not in pieces
    assert b"".join(pieces).decode() == text


def test_control_tokens_and_ids_without_a_token_have_no_bytes(tokenizer):
    for token in (*control_ids(tokenizer), -1, tokenizer.vocab_size):
        assert tokenizer.token_bytes(token) is None


@given(ids=st.lists(st.integers(0, 300), max_size=30))
def test_text_of_any_ids_holds_no_control_token_when_encoded_again(tokenizer, ids):
    assert not control_ids(tokenizer) & set(tokenizer.encode(tokenizer.decode(ids)))


@pytest.mark.parametrize("literal", CONTROL)
def test_a_spelled_control_token_is_text(tokenizer, literal):
    for text in (literal, f"a {literal} b", literal * 3, f"<{literal}>", literal[:3] + literal + literal[-3:]):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not control_ids(tokenizer) & set(ids)


@pytest.mark.parametrize("text", ORDINARY)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_ordinary_text_has_the_ids_of_the_tokenizers_library(request, kind, text):
    directory = request.getfixturevalue(kind)
    pipeline = Pipeline.from_file(str(directory / "tokenizer.json"))
    ids = pipeline.encode(text, add_special_tokens=False).ids
    assert Tokenizer.from_directory(directory).encode(text) == ids
    assert Tokenizer.from_directory(directory).decode(ids) == pipeline.decode(ids)


@given(text=st.text().filter(lambda text: not any(literal in text for literal in CONTROL)))
def test_random_text_has_the_ids_of_the_tokenizers_library(byte_level, byte_fallback, text):
    for directory in (byte_level, byte_fallback):
        pipeline = Pipeline.from_file(str(directory / "tokenizer.json"))
        assert Tokenizer.from_directory(directory).encode(text) == pipeline.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_has_the_ids_of_sentencepiece(sentencepiece, text):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(sentencepiece / "tokenizer.model"))
    ids = processor.encode(text)
    assert Tokenizer.from_directory(sentencepiece).encode(text) == ids
    assert Tokenizer.from_directory(sentencepiece).decode(ids) == processor.decode(ids)


def test_added_tokens_that_are_plain_text_stay_one_token(byte_fallback, sentencepiece):
    for directory in (byte_fallback, sentencepiece):
        tokenizer = Tokenizer.from_directory(directory)
        assert len(tokenizer.encode("\n\n")) == len(tokenizer.encode("<b>")) == 1


def test_added_plain_tokens_decode_to_what_they_say(tmp_path):
    pipeline = byte_level_pipeline()
    pipeline.add_tokens([AddedToken("n\u00e9", special=False)])
    pipeline.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert len(tokenizer.encode("n\u00e9")) == 1
    assert tokenizer.decode(tokenizer.encode("n\u00e9e")) == "n\u00e9e"


def test_control_tokens_are_left_out_of_text(tokenizer):
    ids = tokenizer.encode("a griffin")
    for token_id in control_ids(tokenizer):
        assert tokenizer.decode([token_id]) == ""
        assert tokenizer.decode([ids[0], token_id, *ids[1:]]) == "a griffin"


def test_ids_of_special_tokens_are_those_of_their_names(byte_level, sentencepiece):
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(sentencepiece / "tokenizer.model"))
    pipeline = Pipeline.from_file(str(byte_level / "tokenizer.json"))
    for directory, id_of in ((byte_level, pipeline.token_to_id), (sentencepiece, processor.piece_to_id)):
        tokenizer = Tokenizer.from_directory(directory)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == tuple(map(id_of, ("<bos>", "<eos>", "<pad>")))
        assert tokenizer.end_ids == {id_of("<eos>"), id_of("<end_of_turn>")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\ud800", "\ufffd"), ("a\udfffb", "a\ufffdb"), ("\ud83d\udc26", "🐦"), ("\udc26\ud83d", "\ufffd\ufffd")],
)
def test_lone_surrogates_become_replacement_characters(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["text"]])
def test_what_is_no_text_is_refused(tokenizer, text):
    with pytest.raises(TokenizerError, match="must be a string"):
        tokenizer.encode(text)


def test_ids_may_be_numpy_integers(tokenizer):
    ids = tokenizer.encode("a little griffin")
    assert tokenizer.decode(np.array(ids, dtype=np.int64)) == "a little griffin"


def test_a_literal_that_only_a_normalizer_makes_is_text(tmp_path):
    pipeline = byte_level_pipeline()
    pipeline.normalizer = normalizers.NFKC()
    pipeline.add_special_tokens([AddedToken("<tool>", normalized=True)])
    pipeline.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    wide = "a \uff1ctool\uff1e b"
    assert pipeline.token_to_id("<tool>") in pipeline.encode(wide).ids
    assert pipeline.token_to_id("<tool>") not in tokenizer.encode(wide)
    assert tokenizer.decode(tokenizer.encode(wide)) == "a <tool> b"


def test_a_character_that_is_a_control_token_is_refused(tmp_path):
    pipeline = byte_level_pipeline()
    pipeline.add_special_tokens(["§"])
    pipeline.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="'§', which the tokenizer has only as a control token"):
        Tokenizer.from_directory(tmp_path).encode("see § 5")


def test_text_that_the_vocabulary_cannot_write_is_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(byte_fallback=False, vocab_size=200))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.decode(tokenizer.encode("griffin")) == "griffin"
    with pytest.raises(TokenizerError, match="no token for some of"):
        tokenizer.encode("ß")


def test_digest_tells_vocabularies_names_and_templates_apart(byte_level, tmp_path):
    data = (byte_level / "tokenizer.json").read_bytes()

    def digest(config: str, contents: bytes = data) -> str:
        (tmp_path / "tokenizer.json").write_bytes(contents)
        (tmp_path / "tokenizer_config.json").write_text(config)
        return Tokenizer.from_directory(tmp_path).digest

    configs = [
        "{}",
        '{"additional_special_tokens": ["a"]}',
        '{"eos_token": null}',
        '{"eos_token": "<pad>"}',
        '{"chat_template": "{{ bos_token }}"}',
    ]
    assert len({digest(config) for config in configs} | {digest("{}", data + b"\n")}) == 6
    assert digest("{}") == digest('{"model_max_length": 5}') == Tokenizer.from_directory(byte_level).digest


def test_names_of_roles_are_read_not_assumed(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(
        sentencepiece_model(bos_piece="<s>", eos_piece="</s>", bos_id=7, pad_id=-1)
    )
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (7, 1, None)
    assert tokenizer.decode(tokenizer.encode("<s></s><bos>")) == "<s></s><bos>"
