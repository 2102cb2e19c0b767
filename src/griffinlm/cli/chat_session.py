"""What the lines of `griffin chat` do: turns, and commands that begin with a slash."""

import time
from collections.abc import Callable, Generator
from typing import NamedTuple

from griffinlm.cli.chat_tree import drawn_tree, in_short
from griffinlm.cli.output import for_terminal, readable_bytes
from griffinlm.cli.text_input import require_text
from griffinlm.conversation import Conversation
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import Options
from griffinlm.language_model import LanguageModel
from griffinlm.state import attention_bytes_per_token

SLASH = "/"
MOST_DIGITS = 9


class CommandError(GriffinError):
    """A command that is unknown, or lacks what belongs behind it."""


class Command(NamedTuple):
    """One command: what stands behind it (in brackets: may be left out), what it does, and what does it."""

    argument: str
    purpose: str
    run: "Callable[[ChatSession, str], str]"


class ChatSession:
    """A conversation, driven by lines of text.

    Args:
        is_typed: the answers go to a terminal, so characters that it would obey are written as escapes.
    """

    def __init__(self, model: LanguageModel, options: Options, is_typed: bool = False) -> None:
        self.is_over = False
        self._model, self._options, self._is_typed = model, options, is_typed
        self._conversation = Conversation(model, **options)
        self._tokens_per_second: float | None = None

    def take(self, line: str) -> Generator[str]:
        """What a line is answered with, piece by piece, a line end last.

        Two slashes begin a message that begins with one. A line of spaces is no turn.

        Raises:
            GriffinError: the command is unknown or refused, the message is no UTF-8, or the model refuses it.
        """
        text = line.strip()
        if text.startswith(SLASH) and not text.startswith(2 * SLASH):
            said = self._command(text)
            if said:
                yield f"{said}\n"
        elif text:
            yield from self._answer(line.replace(2 * SLASH, SLASH, 1) if text.startswith(2 * SLASH) else line)
            yield "\n"

    def _answer(self, message: str) -> Generator[str]:
        pieces = self._conversation.say(require_text(message))
        started = time.perf_counter()
        try:
            for piece in pieces:
                yield for_terminal(piece) if self._is_typed else piece
        finally:
            pieces.close()
        seconds = time.perf_counter() - started
        latest = self._conversation.latest
        if latest is not None:
            self._tokens_per_second = len(latest.token_ids) / seconds

    def _command(self, text: str) -> str:
        name, _, argument = text[1:].partition(" ")
        command = COMMANDS.get(name)
        if command is None:
            raise CommandError(f"unknown command /{name}", "/help lists the commands; // begins a message with a slash")
        argument = argument.strip()
        is_optional = command.argument.startswith("[")
        if (not argument and command.argument and not is_optional) or (argument and not command.argument):
            raise CommandError(f"/{name} is used as: {_usage(name, command)}")
        return command.run(self, argument)

    def _where(self) -> str:
        turn = self._conversation.current
        return "at the beginning" if turn.parent is None else f"behind turn {turn.number}: {in_short(turn, 60)}"

    def _save(self, path: str) -> str:
        self._conversation.save(path)
        return f"saved to {path}"

    def _load(self, path: str) -> str:
        self._conversation = Conversation.load(path, self._model, **self._options)
        return f"loaded from {path}, {self._where()}"

    def _fork(self, number: str) -> str:
        self._conversation.go_to(_whole_number("fork", number))
        return self._where()

    def _rewind(self, num_turns: str) -> str:
        self._conversation.rewind(_whole_number("rewind", num_turns or "1"))
        return self._where()

    def _tree(self, _: str) -> str:
        return drawn_tree(self._conversation.turns, self._conversation.current)

    def _stats(self, _: str) -> str:
        conversation, model = self._conversation, self._model
        num_tokens, state = conversation.num_tokens, conversation.state
        growing = num_tokens * attention_bytes_per_token(model.config, model.window_dtype)
        size = "read again when needed" if state is None else readable_bytes(state.nbytes)
        speed = "none yet" if self._tokens_per_second is None else f"{self._tokens_per_second:.1f} tokens/s"
        return "\n".join(
            [
                f"tokens           {num_tokens:,}",
                f"turns            {len(conversation.turns) - 1}",
                f"state            {size}",
                f"with attention   {readable_bytes(growing)} at this length, if every layer kept all tokens",
                f"states kept      {conversation.num_kept}, together {readable_bytes(conversation.kept_bytes)}",
                f"last answer      {speed}",
            ]
        )

    def _help(self, _: str) -> str:
        width = max(len(_usage(name, command)) for name, command in COMMANDS.items())
        return "\n".join(f"{_usage(name, command):{width}}   {command.purpose}" for name, command in COMMANDS.items())

    def _exit(self, _: str) -> str:
        self.is_over = True
        return ""


COMMANDS = {
    "rewind": Command("[N]", "go back a turn, or N; what is said then grows a branch", ChatSession._rewind),
    "fork": Command("TURN", "go on behind a turn of the tree; no branch is lost", ChatSession._fork),
    "tree": Command("", "show all turns with their numbers", ChatSession._tree),
    "save": Command("FILE", "save all turns and the present state", ChatSession._save),
    "load": Command("FILE", "go on with a conversation that was saved", ChatSession._load),
    "stats": Command("", "tell lengths, sizes and speed", ChatSession._stats),
    "help": Command("", "show this", ChatSession._help),
    "exit": Command("", "end", ChatSession._exit),
}


def _usage(name: str, command: Command) -> str:
    return f"/{name} {command.argument}".rstrip()


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise CommandError(f"/{name} {text}: {text!r} is no whole number")
    if len(text) > MOST_DIGITS:
        raise CommandError(f"/{name}: a number of {len(text)} digits is too large; at most {MOST_DIGITS} are read")
    return int(text)
