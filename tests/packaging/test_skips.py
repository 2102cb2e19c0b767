"""A skip for a missing dependency is a failure in CI, and only there; other skips stay what they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN_DIRECTORY = Path(__file__).parents[1]

MISSING = {
    "imported_by_the_test": "def test_it(): pytest.importorskip('no_such_package')",
    "imported_by_the_file": "pytest.importorskip('no_such_package', reason='needs no_such_package')",
    "marked": "@pytest.mark.skipif(True, reason='needs a tool')\ndef test_it(): pass",
}
OTHERS = {
    "allowed": "@pytest.mark.skipif(True, reason='needs a GPU')\ndef test_it(): pass",
    "not_applicable": "def test_it(): pytest.skip('this model has no window')",
    "expected_failure": "@pytest.mark.xfail(reason='needs a tool')\ndef test_it(): assert False",
    "passed": "def test_it(): pass",
}


@pytest.mark.parametrize(("ci", "expected"), [("true", set(MISSING)), ("", set())])
def test_what_fails_in_ci_and_elsewhere(tmp_path: Path, ci: str, expected: set[str]):
    for name, content in {**MISSING, **OTHERS}.items():
        (tmp_path / f"test_{name}.py").write_text(f"import pytest\n{content}\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "skips",
        "--rootdir",
        ".",
        "-rfE",
        "--continue-on-collection-errors",
    ]
    environment = {**os.environ, "CI": ci, "PYTHONPATH": os.fspath(PLUGIN_DIRECTORY)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    failed = re.findall(r"^(?:FAILED|ERROR) test_(\w+)\.py", run.stdout, re.MULTILINE)
    assert set(failed) == expected, run.stdout
    assert run.returncode == (1 if expected else 0)
