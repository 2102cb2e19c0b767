"""A text that need not end: in pieces, read into a state of fixed size."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from griffinlm.cli.interrupts import Interrupted
from griffinlm.cli.text_input import PIECE_BYTES
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import Options
from griffinlm.language_model import LanguageModel
from griffinlm.state import NOTHING_PENDING, State

LONGEST_LINE = PIECE_BYTES
"""Characters; a longer line counts as several."""

_SEAM = re.compile(r"\n(?=\S)")
"""Where a text is cut: no tokenizer in use has a token of a line end and a character that is no space."""
_GAP = re.compile(r"\S(?= \S)")
"""Where one without lines is cut: a single space begins a token."""


class PipeError(GriffinError):
    """A pattern that is none, or a model that cannot read without end."""


class Piece(NamedTuple):
    """The text behind the last piece."""

    text: str
    is_match: bool
    """It ends with a line that the pattern is found in."""
    num_lines: int
    """Lines up to its end."""


def pieces_by_size(texts: Iterable[str]) -> Iterator[str]:
    """The text in pieces of about 64 KiB, cut where the tokenizer would cut it too; a shorter one is one piece."""
    held = ""
    for text in texts:
        cut = _last_seam(held)
        if cut:
            yield held[:cut]
        held = held[cut:] + text
    yield held


def pieces_by_line(texts: Iterable[str], pattern: re.Pattern[str]) -> Iterator[Piece]:
    """The text as soon as it is there, cut where the tokenizer would cut it too, and behind every line that matches.

    The last line counts with or without a line end.
    """
    held, start, num_lines = "", 0, 0
    for text in itertools.chain(texts, [""]):
        held += text
        while start < len(held) and (end := _line_end(held, start, is_over=not text)):
            num_lines += 1
            is_match = pattern.search(held[start:end].rstrip("\r\n")) is not None
            start = end
            if is_match:
                yield Piece(held[:end], True, num_lines)
                held, start = held[end:], 0
        cut = min(_last_seam(held), start)
        if cut:
            yield Piece(held[:cut], False, num_lines)
            held, start = held[cut:], start - cut
    if held:
        yield Piece(held, False, num_lines)


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of `re`.

    Raises:
        PipeError: it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise PipeError(f"--every {pattern!r} is no regular expression: {error}") from None


class Reading:
    """What a model remembers of a text, whose last token is pending: so an answer can go on from anywhere.

    Args:
        state: where to go on; None is the beginning of a document.
        capacity: tokens to keep room for where a model with global attention begins.

    Raises:
        PipeError: such a model has no capacity.
    """

    def __init__(self, model: LanguageModel, state: State | None, capacity: int | None) -> None:
        self._model = model
        if state is None:
            if model.config.needs_capacity and capacity is None:
                raise PipeError(
                    "a model with global attention cannot read without end: its state grows with the text",
                    hint="give --capacity N for a text of at most N tokens, or use a model with a fixed state",
                )
            state = model.new_state(capacity=capacity)
            bos = model.tokenizer.bos_id
            if bos is not None and not model.initial_ids:
                state = state.with_pending([bos])
        self.state = state

    def read(self, text: str) -> None:
        """Goes on to the end of the text.

        Raises:
            GriffinError: the vocabulary cannot write it, or it passes the capacity.
        """
        ids = self._model.tokenizer.encode(text)
        if not ids:
            return
        if len(ids) > 1 or self.state.pending[0] != NOTHING_PENDING:
            self.state = self._model.read(ids[:-1], self.state)
        self.state = self.state.with_pending(ids[-1:])


def read_all_but_last(
    model: LanguageModel, state: State | None, texts: Iterable[str], options: Options
) -> tuple[State | None, str]:
    """Reads a text on from a state, all but its last piece; gives the state there, and that piece.

    Args:
        options: the capacity among them is taken out where a state is made with it.

    Raises:
        Interrupted: by Ctrl-C, with the state reached.
        GriffinError: as of `Reading`.
    """
    reading, last = None, ""
    try:
        for piece in pieces_by_size(texts):
            if last:
                reading = reading or Reading(model, state, options.pop("capacity", None))
                reading.read(last)
            last = piece
    except KeyboardInterrupt:
        raise Interrupted(state if reading is None else reading.state) from None
    return (state if reading is None else reading.state), last


def _line_end(text: str, start: int, is_over: bool) -> int:
    """Where the line that begins at `start` ends; 0 where its end has not come yet."""
    end = text.find("\n", start, start + LONGEST_LINE) + 1
    if end:
        return end
    if len(text) - start >= LONGEST_LINE:
        return start + LONGEST_LINE
    return len(text) if is_over else 0


def _last_seam(text: str) -> int:
    """Where a text is best cut; 0 for nowhere, as long as it is short."""
    seams = [found.end() for found in _SEAM.finditer(text)]
    if seams or len(text) < PIECE_BYTES:
        return seams[-1] if seams else 0
    gaps = [found.end() for found in _GAP.finditer(text)]
    return gaps[-1] if gaps else len(text)
