"""griffin chat: a conversation in the terminal."""

import contextlib
import signal
import sys
from collections.abc import Iterable, Iterator
from types import FrameType
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
    if is_typed():
        _talk(session)
        return
    for line in read_lines():
        _show(session.take(line))
        if session.is_over:
            return


def is_typed() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class _CtrlC:
    """Ctrl-C in a conversation: it ends what is waited for, once. Between two waits and on a way out nobody hears it.

    So an answer that it cuts is kept, however often the key is pressed.
    """

    def __init__(self) -> None:
        self._is_heard = False

    def __enter__(self) -> "_CtrlC":
        self._before = signal.signal(signal.SIGINT, self._on_interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Raises KeyboardInterrupt in this block, once."""
        self._is_heard = True
        try:
            yield
        finally:
            self._is_heard = False

    def _on_interrupt(self, _: int, __: FrameType | None) -> None:
        if self._is_heard:
            self._is_heard = False
            raise KeyboardInterrupt


def _talk(session: "ChatSession") -> None:
    """Takes lines from a person to the end; a fault is told and ends nothing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history, where the system has it)
    with _CtrlC() as ctrl_c:
        while not session.is_over:
            try:
                with ctrl_c.heard():
                    line = input("> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            pieces = session.take(line)
            try:
                with ctrl_c.heard():
                    _show(pieces)
            except KeyboardInterrupt:
                pieces.close()
                print(flush=True)
            except GriffinError as error:
                print_error(str(error), error.hint)


def _show(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
