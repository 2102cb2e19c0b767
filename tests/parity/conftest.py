"""The marker of the tests that need the original packages, and the figures that they found."""

import pytest

from .reading import WORST


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "parity: compares with the original packages; install tests/parity/requirements.txt to run it"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The largest deviations, where the tests ran in this process (`--numprocesses 0`)."""
    for (original, kind), value in sorted(WORST.items()):
        terminalreporter.write_line(f"largest deviation from {original}, {kind}: {value:.1e}")
