"""Tokenizer: text and conversations to ids and back."""

import hashlib
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import SupportsIndex

from griffinlm.text.backend import Backend
from griffinlm.text.chat import GEMMA_TEMPLATE, ChatTemplate
from griffinlm.text.errors import TokenizerError
from griffinlm.text.json_backend import JsonBackend
from griffinlm.text.sentencepiece_backend import SentencePieceBackend
from griffinlm.text.settings import ROLES, TokenizerSettings, read_file, read_settings
from griffinlm.text.stream import TextStream
from griffinlm.text.unicode import well_formed

START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"

_BACKENDS = {"tokenizer.json": JsonBackend, "tokenizer.model": SentencePieceBackend}
"""By file name, the preferred one first."""


class Tokenizer:
    """A vocabulary with its control tokens and chat template.

    Control tokens (begin, end, padding, unknown, turn markers and what else the files call special) come from a chat
    template or from the caller as ids, never from text: a text that spells one is cut inside the spelling, so that it
    becomes ordinary tokens which decode to the same text.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    end_ids: frozenset[int]
    """Tokens that end an answer: the end token and the end of a turn."""
    digest: str
    """SHA-256 of all that decides ids: the tokenizer's file, the names of its special tokens, the chat template."""

    def __init__(self, data: bytes, backend: Backend, settings: TokenizerSettings) -> None:
        """Join a vocabulary (read from `data`) with what its settings say; `from_directory` does both.

        Raises:
            TokenizerError: the settings name a token that the vocabulary lacks, or it does not keep spaces.
        """
        self._backend = backend
        self._names = {role: settings.names.get(role, backend.default_name(role)) for role in ROLES}
        turns = [marker for marker in (START_OF_TURN, END_OF_TURN) if backend.id_of(marker) is not None]
        named = [name for name in self._names.values() if name is not None]
        backend.make_control(dict.fromkeys(_known([*named, *settings.control], backend) + turns))
        self._control_ids = frozenset(backend.control.values())
        self._literal_starts = _literal_starts(backend.control)

        self.bos_id, self.eos_id, self.pad_id = (self._id_of_role(role) for role in ("bos", "eos", "pad"))
        end_of_turn = backend.id_of(END_OF_TURN)
        self.end_ids = frozenset(token_id for token_id in (self.eos_id, end_of_turn) if token_id is not None)
        source = settings.chat_template
        if source is None and len(turns) == 2:
            source = GEMMA_TEMPLATE
        self._template = None if source is None else ChatTemplate(source)
        identity = [hashlib.sha256(data).hexdigest(), self._names, sorted(backend.control), source]
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._require_spaces_kept()

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a model directory: `tokenizer.json`, else SentencePiece's `tokenizer.model`.

        `tokenizer_config.json` and `chat_template.jinja` beside it are read too.

        Raises:
            TokenizerError: there is no tokenizer, a file is damaged, or a library it needs is missing.
        """
        directory = Path(path)
        for name, backend in _BACKENDS.items():
            if os.path.exists(directory / name):
                data = read_file(directory / name)
                return cls(data, backend(data), read_settings(directory))
        raise TokenizerError(f"{directory} has no tokenizer; it must hold {' or '.join(_BACKENDS)}")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._backend.vocab_size

    @property
    def control(self) -> Mapping[str, int]:
        """Ids of the control tokens by their literals."""
        return self._backend.control

    @property
    def chat_template(self) -> str | None:
        """The jinja source that conversations are written by; None where there is none."""
        return None if self._template is None else self._template.source

    def encode(self, text: str) -> list[int]:
        """Ids of a text: no control token whatever it says, no begin token. Lone surrogates count as U+FFFD.

        Raises:
            TokenizerError: `text` is no string, or the vocabulary cannot write it.
        """
        return [token_id for _, ids in self._cut(well_formed(text)) for token_id in ids]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Text of ids: control tokens are left out, bytes that are no UTF-8 become U+FFFD.

        Raises:
            TokenizerError: no token has one of the ids.
        """
        return b"".join(map(self._token_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes | None:
        """UTF-8 bytes that a token adds to a text, perhaps part of a character; None for control tokens and no token.

        Those of `encode(text)`, joined, are the text.
        """
        return None if token_id in self._control_ids else self._backend.token_bytes(token_id)

    def stream(self) -> TextStream:
        """A decoder that takes one id at a time."""
        return TextStream(self._token_bytes)

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the chat template writes it, control tokens by name.

        Args:
            messages: tables with exactly `role` and `content`, both text.
            add_generation_prompt: end with the beginning of an answer.

        Raises:
            TokenizerError: there is no chat template, it fails, or the messages are malformed.
        """
        return "".join(self._render(messages, add_generation_prompt))

    def encode_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Ids of `render_chat`, the begin token first and only there; no message becomes a control token.

        Raises:
            TokenizerError: as `render_chat` and `encode`.
        """
        pieces = self._render(messages, add_generation_prompt)
        ids = [token_id for piece in pieces for token_id in self._backend.encode(piece)]
        if self.bos_id is None:
            return ids
        return [self.bos_id, *(token_id for token_id in ids if token_id != self.bos_id)]

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[str]:
        if self._template is None:
            raise TokenizerError(
                "the tokenizer has no chat template",
                hint="put one into chat_template.jinja beside the tokenizer, or use a model tuned for conversation",
            )
        tokens = {f"{role}_token": name for role, name in self._names.items() if name is not None}
        variables = {**tokens, "add_generation_prompt": add_generation_prompt}
        return self._template.render(messages, variables, lambda text: [piece for piece, _ in self._cut(text)])

    def _cut(self, text: str) -> Iterator[tuple[str, list[int]]]:
        """The text in pieces, with their ids, none of which is a control token.

        The cuts stand behind the first character of every spelling of a control token.
        """
        cuts = [match.start() + 1 for match in self._literal_starts.finditer(text)] if self._literal_starts else []
        for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            yield from self._halve_until_plain(text[start:stop])

    def _halve_until_plain(self, piece: str) -> Iterator[tuple[str, list[int]]]:
        """The piece, cut further where a normalizer makes the spelling of a control token out of other characters."""
        ids = self._backend.encode(piece)
        if self._control_ids.isdisjoint(ids):
            yield piece, ids
        elif len(piece) == 1:
            raise TokenizerError(f"the text holds {piece!r}, which the tokenizer has only as a control token")
        else:
            middle = len(piece) // 2
            yield from self._halve_until_plain(piece[:middle])
            yield from self._halve_until_plain(piece[middle:])

    def _token_bytes(self, token_id: SupportsIndex) -> bytes:
        index = operator.index(token_id)
        if index in self._control_ids:
            return b""
        text = self._backend.token_bytes(index)
        if text is None:
            raise TokenizerError(f"no token has the id {index}; ids go from 0 to {self.vocab_size - 1}")
        return text

    def _id_of_role(self, role: str) -> int | None:
        name = self._names[role]
        return None if name is None else self._backend.id_of(name)

    def _require_spaces_kept(self) -> None:
        """Texts are cut and joined: a space that a tokenizer adds in front or takes away would show at every seam."""
        probe = "a  "
        try:
            found = self.decode(self._backend.encode(probe))
        except TokenizerError:
            return
        if found.removeprefix("a") != "  ":
            raise TokenizerError(
                f"the tokenizer turns {probe!r} into {found!r}; it must keep spaces and put none in front of a text"
            )


def _known(names: Iterable[str], backend: Backend) -> list[str]:
    """The names, all of which the vocabulary must have."""
    known = list(dict.fromkeys(names))
    lacking = [name for name in known if backend.id_of(name) is None]
    if lacking:
        raise TokenizerError(
            f"tokenizer_config.json names special tokens that the vocabulary lacks: {', '.join(map(repr, lacking[:5]))}"
            + (f" and {len(lacking) - 5} more" if len(lacking) > 5 else "")
        )
    return known


def _literal_starts(control: Mapping[str, int]) -> re.Pattern[str] | None:
    """Matches, with no width, wherever a control token's literal begins; None where there are none."""
    literals = "|".join(re.escape(literal) for literal in control if literal)
    return re.compile(f"(?={literals})") if literals else None
