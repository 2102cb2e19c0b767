"""A pytest plugin: with CI=true, a test skipped because something is missing has failed.

Such a skip says what is missing: its reason begins with "needs ", or is that of `pytest.importorskip`.
"""

import os

import pytest

MAY_BE_MISSING = {
    "needs a GPU": "the machines that run the tests have none",
}
"""Beginnings of reasons that stay skips, and why."""


def missing_dependency(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that must not happen where everything is installed; None for every other report."""
    if not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return None
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not reason.startswith(("needs ", "could not import ")) or reason.startswith(tuple(MAY_BE_MISSING)):
        return None
    return reason


def as_failure(report: pytest.TestReport | pytest.CollectReport) -> pytest.TestReport | pytest.CollectReport:
    reason = missing_dependency(report)
    if os.environ.get("CI") == "true" and reason is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped although nothing may be missing here: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport():
    return as_failure((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report():
    return as_failure((yield))
