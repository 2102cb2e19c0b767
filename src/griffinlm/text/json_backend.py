"""`tokenizer.json` through the `tokenizers` library."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers import decoders, models

from griffinlm.errors import in_one_line
from griffinlm.text.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHER_BYTES = tuple(byte for byte in range(256) if byte not in _PRINTABLE_BYTES)
BYTE_OF_CHARACTER = {chr(byte): byte for byte in _PRINTABLE_BYTES} | {
    chr(256 + position): byte for position, byte in enumerate(_OTHER_BYTES)
}
"""Byte-level BPE writes every byte as one character: itself where it prints in Latin-1, else one from U+0100 on."""


LONG_CHARACTERS = 4096
"""Texts from here on take milliseconds."""


class JsonBackend:
    """A BPE whose tokens are bytes: byte-level, or characters with byte fallback as SentencePiece has it."""

    def __init__(self, data: bytes) -> None:
        """Read the contents of a `tokenizer.json`.

        Raises:
            TokenizerError: the library cannot read it, or it is of another kind.
        """
        self._tokenizer = _read_pipeline(data)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise TokenizerError("tokenizer.json has no tokens")
        self._vocab_size = max(vocabulary.values()) + 1
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token.content: token_id for token_id, token in added.items() if token.special}
        self._is_byte_level, self._replacements = _read_decoder(self._tokenizer.decoder)
        self._added_ids = frozenset(added)
        model = self._tokenizer.model
        if not isinstance(model, models.BPE):
            raise TokenizerError(f"tokenizer.json holds a {type(model).__name__} model; allowed is BPE")
        self._unknown_id = None if model.unk_token is None else self.id_of(model.unk_token)
        self._missing_bytes: frozenset[int] = frozenset()
        if self._unknown_id is None:
            self._missing_bytes = self._find_missing_bytes(vocabulary, model)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def control(self) -> Mapping[str, int]:
        return self._control

    def default_name(self, role: str) -> str | None:
        """Gemma's name of the role where the vocabulary has it: the file itself names no roles."""
        name = f"<{role}>"
        return name if self.id_of(name) is not None else None

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def make_control(self, tokens: Iterable[str]) -> None:
        new = {token: token_id for token in tokens if (token_id := self.id_of(token)) is not None}
        special = [tokenizers.AddedToken(token, normalized=False, special=True) for token in new.keys() - self._control]
        self._tokenizer.add_special_tokens(special)
        self._control.update(new)

    def encode(self, text: str) -> list[int]:
        with _one_line_faults("the tokenizer fails"):
            ids = self._encoded(text)
        lost = self._missing_bytes and not self._missing_bytes.isdisjoint(text.encode())
        if lost or (self._unknown_id is not None and self._unknown_id in ids):
            raise TokenizerError(f"the tokenizer has no token for some of {in_one_line(repr(text[:60]))}")
        return ids

    def _encoded(self, text: str) -> list[int]:
        if len(text) < LONG_CHARACTERS:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        # As a batch it is encoded without the interpreter's lock, so that other threads go on.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def token_bytes(self, token_id: int) -> bytes | None:
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < self._vocab_size else None
        if token is None:
            return None
        if self._is_byte_level:
            if token_id not in self._added_ids and all(character in BYTE_OF_CHARACTER for character in token):
                return bytes(BYTE_OF_CHARACTER[character] for character in token)
            return token.encode()
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()

    def _find_missing_bytes(self, vocabulary: Mapping[str, int], model: models.BPE) -> frozenset[int]:
        """Bytes that no token writes, so that the library would drop them from a text without a word."""
        if self._is_byte_level:
            return frozenset(byte for character, byte in BYTE_OF_CHARACTER.items() if character not in vocabulary)
        if not model.byte_fallback or any(f"<0x{byte:02X}>" not in vocabulary for byte in range(256)):
            raise TokenizerError(
                "tokenizer.json has neither all 256 byte tokens nor an unknown token: it would lose text"
            )
        return frozenset()


@contextmanager
def _one_line_faults(what: str) -> Iterator[None]:
    """Turn whatever the library raises, a panic too, into a TokenizerError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as fault:  # PanicException is no Exception
        raise TokenizerError(f"{what}: {in_one_line(fault)}") from None


def _read_pipeline(data: bytes) -> tokenizers.Tokenizer:
    with _one_line_faults("tokenizer.json cannot be read"):
        tokenizer = tokenizers.Tokenizer.from_buffer(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_decoder(decoder: decoders.Decoder | None) -> tuple[bool, list[tuple[str, str]]]:
    """Whether tokens are byte-level, and else the replacements that make a token text."""
    state: dict[str, Any] = {"type": None}
    if decoder is not None:
        state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return True, []
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse"} and kinds[-2:] == ["ByteFallback", "Fuse"]:
        rules = [(step["pattern"], step["content"]) for step in steps[:-2]]
        if all(set(pattern) == {"String"} for pattern, _ in rules):
            return False, [(pattern["String"], content) for pattern, content in rules]
    raise TokenizerError(
        f"tokenizer.json has the decoder {' + '.join(map(str, kinds))}; allowed are ByteLevel, "
        "and Replace + ByteFallback + Fuse"
    )
