"""The turns of a conversation, drawn as a tree in lines of text."""

import shutil
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size

from griffinlm.cli.output import one_line
from griffinlm.conversation import Turn


def drawn_tree(turns: Sequence[Turn], current: Turn) -> str:
    """A line a turn with its number; a turn stands under the one it follows, and is indented where there are several.

    The current turn has a mark.
    """
    if len(turns) == 1:
        return "there are no turns yet"
    width = shutil.get_terminal_size().columns
    return "\n".join(
        f"{'*' if turn is current else ' '}{turn.number:>4} {indent}{in_short(turn, max(20, width - 7 - len(indent)))}"
        for turn, indent in _indented(turns[0])
    )


def in_short(turn: Turn, width: int) -> str:
    """What was said and answered, in one line of at most `width` columns, of which the question has up to half."""
    question, answer = (one_line(message["content"]) for message in turn.messages)
    question = _cut(question, max(width // 2, width - cell_len(answer) - 3))
    return f"{question} → {_cut(answer, width - cell_len(question) - 3)}"


def _indented(beginning: Turn) -> Iterator[tuple[Turn, str]]:
    """The turns below the beginning, each before those that follow it, with what is drawn in front of it."""
    waiting = [(child, *_drawn(beginning, child, "")) for child in reversed(beginning.children)]
    while waiting:
        turn, own, below = waiting.pop()
        yield turn, own
        waiting += [(child, *_drawn(turn, child, below)) for child in reversed(turn.children)]


def _drawn(parent: Turn, child: Turn, indent: str) -> tuple[str, str]:
    """What stands in front of a child, and of what follows it."""
    if len(parent.children) == 1:
        return indent, indent
    is_last = child is parent.children[-1]
    return indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  ")


def _cut(text: str, width: int) -> str:
    """Characters of some scripts take two columns of a terminal."""
    return text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"
