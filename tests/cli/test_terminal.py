"""griffin chat on a terminal of its own, as a person has it."""

import os
import select
import signal
import sys

import pytest

PROGRAM = "import sys; from griffinlm.cli.main import main; sys.exit(main())"
LONGEST_SILENCE_SECONDS = 300
"""Then the test has failed."""

pty = pytest.importorskip("pty")


class Terminal:
    """A `griffin chat` at the other end of a pseudo-terminal."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-c", PROGRAM, "chat", "--threads", "1", *map(str, arguments)]
        self.pid, self._end = pty.fork()
        if not self.pid:
            os.execve(command[0], command, {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1", **environment})
        self._status: int | None = None

    def shown(self, until: bytes) -> bytes:
        """All that is written up to some words, or to the end."""
        parts = b""
        while until not in parts:
            assert select.select([self._end], [], [], LONGEST_SILENCE_SECONDS)[0], parts
            try:
                part = os.read(self._end, 1 << 16)
            except OSError:  # Linux tells the end so.
                return parts
            if not part:
                return parts
            parts += part
        return parts

    def press(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def hang_up(self) -> None:
        os.close(self._end)

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


@pytest.fixture
def terminal(tiny_model_directory):
    opened = []

    def run(*arguments: object, **environment: str) -> Terminal:
        opened.append(Terminal("--model", tiny_model_directory, "--temperature", "0", *arguments, **environment))
        opened[-1].shown(b"> ")
        return opened[-1]

    yield run
    for one in opened:
        one.kill()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_keys_that_are_no_utf8_are_told_and_the_conversation_goes_on(terminal, errors):
    chat = terminal("--max-tokens", "3", PYTHONIOENCODING=f"ascii:{errors}")
    chat.press(b"caf\xff\r")
    assert b"error: the prompt is not UTF-8 at character " in chat.shown(b"\n> ")
    chat.press("grün\r".encode())
    chat.shown(b"\n> ")
    chat.press(b"/tree\r")
    assert "   1 grün →".encode() in chat.shown(b"\n> ")
    chat.press(b"/exit\r")
    chat.shown(b"never")
    assert chat.wait() == 0


@pytest.fixture
def endless(terminal):
    """A conversation in whose first answer no end comes."""
    chat = terminal("--max-tokens", "1000000", "--min-tokens", "1000000")
    chat.press(b"the hawk\r")
    chat.shown(b"the hawk\r\n")
    return chat


def test_ctrl_c_ends_an_endless_answer_and_not_the_conversation(endless):
    endless.press(b"\x03")
    endless.shown(b"> ")
    endless.press(b"/stats\r")
    assert b"states kept" in endless.shown(b"last answer")
    endless.press(b"/exit\r")
    endless.shown(b"never")
    assert endless.wait() == 0


def test_a_terminal_that_goes_away_ends_an_endless_answer(endless):
    endless.hang_up()
    assert endless.wait() == -signal.SIGHUP
