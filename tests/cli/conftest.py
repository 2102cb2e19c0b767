"""`griffin(...)`: a command line run in this process."""

import pytest
from command_line import CommandLine


@pytest.fixture
def griffin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)
