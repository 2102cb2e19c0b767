"""SentencePiece's `tokenizer.model` through the `sentencepiece` library (extra `sentencepiece`)."""

import re
from collections.abc import Iterable, Mapping

from griffinlm.errors import in_one_line
from griffinlm.text.errors import TokenizerError

_SPACE_MARK = "\u2581"
"""How SentencePiece writes a space."""


class SentencePieceBackend:
    """A SentencePiece model. Its own rule never reads a control symbol from text, so text is cut at them here."""

    def __init__(self, data: bytes) -> None:
        """Read the contents of a `tokenizer.model`.

        Raises:
            TokenizerError: the library is not installed or cannot read the model.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise TokenizerError(
                "tokenizer.model needs the sentencepiece library, which is not installed",
                hint="pip install griffinlm[sentencepiece]",
            ) from None
        self._processor = SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(data)
            pieces = [self._processor.id_to_piece(token_id) for token_id in range(self._processor.get_piece_size())]
        except Exception as fault:
            raise TokenizerError(f"tokenizer.model cannot be read: {in_one_line(fault)}") from None
        self._control: dict[str, int] = {}
        self.make_control(
            piece
            for token_id, piece in enumerate(pieces)
            if self._processor.is_control(token_id) or self._processor.is_unknown(token_id)
        )

    @property
    def vocab_size(self) -> int:
        return self._processor.get_piece_size()

    @property
    def control(self) -> Mapping[str, int]:
        return self._control

    def default_name(self, role: str) -> str | None:
        ids = {
            "bos": self._processor.bos_id,
            "eos": self._processor.eos_id,
            "pad": self._processor.pad_id,
            "unk": self._processor.unk_id,
        }
        token_id = ids[role]()
        return self._processor.id_to_piece(token_id) if token_id >= 0 else None

    def id_of(self, token: str) -> int | None:
        token_id = self._processor.piece_to_id(token)
        return token_id if self._processor.id_to_piece(token_id) == token else None

    def make_control(self, tokens: Iterable[str]) -> None:
        self._control |= {token: self._processor.piece_to_id(token) for token in tokens}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._literals = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for position, part in enumerate(self._literals.split(text)):
            ids.extend([self._control[part]] if position % 2 else self._processor.encode(part, out_type=int))
        if self._processor.unk_id() in ids:
            raise TokenizerError(f"the tokenizer has no token for some of {in_one_line(repr(text[:60]))}")
        return ids

    def token_bytes(self, token_id: int) -> bytes | None:
        if not 0 <= token_id < self.vocab_size:
            return None
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes.fromhex(piece[3:5])  # <0xE2>
        return piece.replace(_SPACE_MARK, " ").encode()
