"""Streaming decode = decoding at once, whatever the ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.text import TextStream, TokenizerError


def stream_pieces(stream: TextStream, ids: list[int]) -> list[str]:
    return [*(stream.push(token_id) for token_id in ids), stream.finish()]


@given(data=st.data())
def test_pieces_of_random_ids_joined_are_decode_of_all(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    assert "".join(stream_pieces(tokenizer.stream(), ids)) == tokenizer.decode(ids)


@given(text=st.text())
def test_pieces_of_an_encoded_text_joined_are_decode_of_all(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(stream_pieces(tokenizer.stream(), ids)) == tokenizer.decode(ids)


@given(pieces=st.lists(st.binary(max_size=3), max_size=20))
def test_any_bytes_in_any_pieces_decode_as_the_whole(pieces):
    joined = "".join(stream_pieces(TextStream(pieces.__getitem__), list(range(len(pieces)))))
    assert joined == b"".join(pieces).decode("utf-8", "replace")


def test_a_character_over_four_tokens_is_held_back_until_whole():
    stream = TextStream(lambda byte: bytes([byte]))
    assert stream_pieces(stream, list("a🐦b".encode())) == ["a", "", "", "", "🐦", "b", ""]


def test_a_character_that_stays_broken_becomes_one_replacement_character():
    stream = TextStream(lambda byte: bytes([byte]))
    assert stream_pieces(stream, [0xF0, 0x9F, 0x90]) == ["", "", "", "\ufffd"]
    assert stream_pieces(stream, [0xE2, 0x82, 0x41]) == ["", "", "\ufffdA", ""]


def test_a_finished_stream_is_as_new():
    stream = TextStream(lambda byte: bytes([byte]))
    assert stream_pieces(stream, [0xF0]) == ["", "\ufffd"]
    assert stream_pieces(stream, [0x41]) == ["A", ""]


def test_control_tokens_are_left_out_of_the_stream(tokenizer):
    word = tokenizer.encode("griffin")
    ids = [tokenizer.bos_id, *word, *sorted(tokenizer.end_ids)]
    assert "".join(stream_pieces(tokenizer.stream(), ids)) == "griffin"


def test_an_id_without_a_token_is_refused(tokenizer):
    for token_id in (-1, tokenizer.vocab_size, 10**12):
        with pytest.raises(TokenizerError, match=f"id {token_id}"):
            tokenizer.stream().push(token_id)
        with pytest.raises(TokenizerError, match=f"id {token_id}"):
            tokenizer.decode([token_id])
