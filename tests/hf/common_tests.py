"""transformers' own tests of every model, from the source distribution that pip fetches; they are not part of wheels.

The distribution leaves out the folders that the tests import from, so generation's common tests cannot be had so.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PACKAGE = "transformers_tests"
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def fetch(directory: Path) -> Path:
    """The folder of common tests of the installed version, fetched into `directory` once."""
    name = f"transformers-{version('transformers')}"
    folder = directory / name / "tests"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=directory) as work:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
            command += ["--dest", work, name.replace("-", "==")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            (archive, *_) = [*Path(work).glob("*.tar.gz"), None]
            if done.returncode or archive is None:
                reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
                pytest.skip(f"needs the source distribution of {name}, which pip could not fetch: {reason}")
            with tarfile.open(archive) as opened:
                opened.extractall(work, filter="data")
            (directory / name).mkdir(exist_ok=True)
            (Path(work) / name / "tests").rename(folder)
    return folder


def common_tests(folder: Path) -> type[Any]:
    """transformers' `ModelTesterMixin`, from the folder that `fetch` found."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(folder)]
    sys.modules[PACKAGE] = package
    for name, mixin in LEFT_OUT.items():
        folder, _, _ = name.partition(".")
        sys.modules[f"{PACKAGE}.{folder}"] = parent = ModuleType(f"{PACKAGE}.{folder}")
        parent.__path__ = []
        sys.modules[f"{PACKAGE}.{name}"] = module = ModuleType(f"{PACKAGE}.{name}")
        setattr(module, mixin, type(mixin, (), {}))
    return importlib.import_module(f"{PACKAGE}.test_modeling_common").ModelTesterMixin
