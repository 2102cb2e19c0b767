"""griffin chat: a conversation in the terminal."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from griffinlm.cli import options as o
from griffinlm.cli.text_input import read_lines

if TYPE_CHECKING:
    from griffinlm.conversation import Conversation


def chat(
    context: typer.Context,
    model: o.Model = "eyas",
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
    threads: o.Threads = None,
) -> None:
    """Talk with a model that has a chat template.

    A line is a turn. Ctrl-C cuts an answer short; Ctrl-D or /exit ends the conversation. Piped input works the same.
    """
    chosen = o.generation_options(context.params)
    from griffinlm.conversation import Conversation

    conversation = Conversation(o.load_model(context.params), **chosen)
    for line in _turns():
        if line.strip() == "/exit":
            return
        if line.strip():
            _answer(conversation, line)


def _turns() -> Iterator[str]:
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
        yield line


def is_typed() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _answer(conversation: "Conversation", line: str) -> None:
    pieces = conversation.say(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        if not is_typed():
            raise
    print(flush=True)
