"""Registers the marker of the tests that need the original packages."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "parity: compares with the original packages; install tests/parity/requirements.txt to run it"
    )
