"""The wheel, installed into empty environments: small, without torch, writing text; and with the extra `torch`.

Builds and installs from the package index, so it takes minutes.
"""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")
MEGABYTE = 1_000_000

LIST_INSTALLED = """
import importlib.metadata, json
sizes = {}
for distribution in importlib.metadata.distributions():
    paths = [file.locate() for file in distribution.files or ()]
    sizes[distribution.name.lower()] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(sizes))
"""

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Environment:
    """A virtual environment with nothing in it but what was asked for."""

    directory: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment away from the repository, with no standard input."""
        path = self.directory / "bin" / program
        return subprocess.run(
            [path, *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def environment_with(requirement: str, directory: Path) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    environment = Environment(directory)
    constraints = os.fspath(ROOT / "constraints.txt")
    done = environment.run("python", "-m", "pip", "install", "--quiet", "-c", constraints, requirement)
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as a release is: the source distribution first, the wheel from it."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", directory, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = directory.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return environment_with(os.fspath(wheel), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def with_torch(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return environment_with(f"{wheel}[torch]", tmp_path_factory.mktemp("with_torch"))


def test_wheel_is_pure_python_typed_and_holds_the_bundled_models(wheel: Path):
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if name.endswith((".so", ".pyd", ".dylib", ".pyc"))]
    bundled = {path.name for path in (ROOT / "src" / "griffinlm" / "data").iterdir() if path.is_dir()}
    assert {"eyas", "eyas-it"} <= bundled
    assert {f"griffinlm/data/{model}/{name}" for model in bundled for name in MODEL_FILES} <= names
    assert "griffinlm/py.typed" in names
    assert {f"griffinlm/serve/page/{name}" for name in ("index.html", "app.js", "style.css", "icon.svg")} <= names
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_base_install_is_small_and_has_no_torch(base: Environment):
    sizes = json.loads(base.run("python", "-c", LIST_INSTALLED).stdout)
    assert "torch" not in sizes
    size = sum(size for name, size in sizes.items() if name not in ("pip", "setuptools"))
    assert sizes["griffinlm"] < size < 300 * MEGABYTE, sizes


def test_base_install_answers_what_needs_no_engine(base: Environment):
    version = base.run("griffin", "--version")
    assert (version.returncode, version.stderr) == (0, "")
    info = base.run("griffin", "info", "recurrentgemma-2b")
    assert info.returncode == 0, info.stderr
    assert "2,682,862,080" in info.stdout


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_base_install_generates(base: Environment, weights: str):
    assert_generates(base, "--weights", weights)


def test_base_install_names_the_extra_that_the_torch_engine_needs(base: Environment):
    done = base.run("griffin", "generate", "Once upon a time", "--engine", "torch")
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "griffinlm[torch]" in hint


def test_torch_extra_generates(with_torch: Environment):
    assert_generates(with_torch, "--engine", "torch")


def assert_generates(environment: Environment, *options: str) -> None:
    arguments = ["generate", "Once upon a time", "--min-tokens", "20", "--max-tokens", "20", "--seed", "1", "--json"]
    done = environment.run("griffin", *arguments, *options)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert len(answer["token_ids"]) == 20
    assert answer["text"].strip()
