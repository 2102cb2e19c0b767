"""The command line in this process, as a function from arguments and standard input to status and output."""

import io
import json
import sys
from typing import Any, NamedTuple

import pytest

from griffinlm.cli.main import main


class Run(NamedTuple):
    """What one command line did."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class CommandLine:
    """Runs `griffin` with captured output; neither stream is a terminal."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object, stdin: bytes = b"") -> Run:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="ascii"))
        self._capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Run(status, *self._capsys.readouterr())

    def fails(self, *arguments: object, stdin: bytes = b"") -> str:
        """The error line of a command line that must be refused: status 2, one error line, at most one hint."""
        run = self(*arguments, stdin=stdin)
        assert run.status == 2, run
        assert_one_error(run.err)
        return run.err.splitlines()[0]


def assert_one_error(err: str) -> None:
    """Standard error is one `error:` line with a message and at most one `hint:` line, and nothing else."""
    lines = err.split("\n")
    assert lines.pop() == ""
    assert len(lines) in (1, 2), err
    assert lines[0].startswith("error: ")
    assert len(lines[0]) > len("error: ")
    assert all(line.startswith("hint: ") and len(line) > len("hint: ") for line in lines[1:])
    assert err.replace("\n", "").isprintable()
