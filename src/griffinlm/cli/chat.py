"""griffin chat: a conversation in the terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from griffinlm.cli import options as o
from griffinlm.cli.output import print_error
from griffinlm.cli.text_input import read_lines
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.cli.chat_session import ChatSession


def chat(
    context: typer.Context,
    model: o.Model = "eyas-it",
    engine: o.Engine = "auto",
    weights: o.Weights = None,
    window_dtype: o.WindowType = None,
    device: o.Device = "cpu",
    max_tokens: o.MaxTokens = 256,
    min_tokens: o.MinTokens = 0,
    temperature: o.Temperature = 1.0,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = 1.0,
    presence_penalty: o.PresencePenalty = 0.0,
    frequency_penalty: o.FrequencyPenalty = 0.0,
    stop: o.Stop = None,
    seed: o.Seed = None,
    adapter: o.Adapter = None,
    speculate: o.Speculate = None,
    early_exit: o.EarlyExit = False,
    threads: o.Threads = None,
) -> None:
    """Talk with a model that has a chat template.

    A line is a turn, or a command: /help tells which there are, for going back, branches, files and figures. Ctrl-C
    cuts an answer short, which is kept as far as it came; Ctrl-D or /exit ends the conversation. Piped input works the
    same, and ends at the first fault.
    """
    chosen = o.generation_options(context.params)
    from griffinlm.cli.chat_session import ChatSession

    session = ChatSession(o.load_model(context.params), chosen, is_typed())
    for line in _lines():
        try:
            _take(session, line)
        except GriffinError as error:
            if not is_typed():
                raise
            print_error(str(error), error.hint)
        if session.is_over:
            return


def is_typed() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _lines() -> Iterator[str]:
    if not is_typed():
        yield from read_lines()
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history, where the system has it)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        yield line


def _take(session: "ChatSession", line: str) -> None:
    pieces = session.take(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        if not is_typed():
            raise
        print(flush=True)
