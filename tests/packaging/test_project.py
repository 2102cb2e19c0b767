"""What the project says about itself is so: versions, extras, sizes, the README's commands; it names no machine."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import griffinlm
from griffinlm.cli.main import main

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md")
MEGABYTE = 1_000_000

IMPORT_ALL_WITHOUT_TORCH = """
import importlib, pkgutil, sys
missing = "torch triton jax sentencepiece tensorstore llguidance lm_eval transformers ray"
sys.modules.update(dict.fromkeys(missing.split()))
import griffinlm
needs_torch = ("griffinlm.kernels", "griffinlm.model", "griffinlm.hf", "griffinlm.train")
needs_extra = ("griffinlm.evaluate.harness", "griffinlm.serve.ray_serve")
for module in pkgutil.walk_packages(griffinlm.__path__, "griffinlm.", onerror=lambda name: None):
    if not module.name.startswith(needs_torch + needs_extra):
        importlib.import_module(module.name)
"""

REGISTRIES = r"(pypi|npmjs|pythonhosted|download\.pytorch)\.org|debian\.org|ubuntu\.com"
MACHINE_PATHS = r"(?<![\w.~})>-])/(work|root|opt|home/\w+)/\w|(?<![\w.~})>-])/tmp/eyas"


def files_of_the_repository() -> list[Path]:
    """Files that are committed or would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    paths = (ROOT / name.decode() for name in listed.stdout.split(b"\0") if name)
    return [path for path in paths if path.is_file()]


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_base_imports_without_torch_or_any_extra():
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL_WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_extras_are_those_that_the_readme_names():
    extras = set(PROJECT["optional-dependencies"])
    served = {"serve", "ray", "clients"}
    assert extras == {"torch", "train", "sentencepiece", "orbax", "evaluate", "structured", "dev"} | served
    assert all(f"`{extra}`" in README for extra in extras)


def test_version_is_one():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[([^\]]+)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert griffinlm.__version__ == PROJECT["version"] == newest[1]


def test_every_pinned_version_is_allowed_by_the_project():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(requirement for extra in extras for requirement in extra)]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name == "griffinlm" or requirement.specifier.contains(pinned[name]), text


def test_readme_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code_blocks("sh") + re.findall(r"`(make [^`]+)`", README))))
    assert {"run", "test"} <= named <= targets


def test_readme_griffin_commands_and_options_exist(capsys: pytest.CaptureFixture[str]):
    for command, options in griffin_commands():
        assert main([command, "--help"]) == 0, command
        described = capsys.readouterr().out
        assert all(re.search(rf"{option}\b", described) for option in options), f"griffin {command}: {options}"


def griffin_commands() -> list[tuple[str, list[str]]]:
    """Command and options of every line of the README's shell blocks that calls griffin."""
    lines = [line for block in code_blocks("sh") for line in block.replace("\\\n", " ").splitlines()]
    calls = [line.split("griffin ", 1)[1] for line in lines if re.search(r"(^|\| )griffin ", line)]
    assert calls
    return [(call.split()[0], re.findall(r"(?<= )--[a-z-]+", call)) for call in calls]


def test_readme_python_session_runs(tmp_path: Path):
    (session,) = code_blocks("python")
    done = subprocess.run([sys.executable, "-c", session], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_readme_links_lead_somewhere():
    targets = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert targets
    assert all((ROOT / target).exists() for target in targets), targets


def test_no_file_names_one_machine_or_a_registry():
    pattern = re.compile(f"{REGISTRIES}|{MACHINE_PATHS}".encode())
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode()}"
        for path in files_of_the_repository()
        if path != Path(__file__) and (match := pattern.search(path.read_bytes()))
    ]
    assert not found


def test_no_file_is_large():
    assert all(path.stat().st_size < 40 * MEGABYTE for path in files_of_the_repository())


def test_bundled_models_are_whole_and_small():
    data = Path(griffinlm.__file__).parent / "data"
    models = [path for path in data.iterdir() if path.is_dir()]
    assert "eyas" in {model.name for model in models}
    assert all((model / name).is_file() for model in models for name in MODEL_FILES)
    assert sum(path.stat().st_size for path in data.rglob("*.safetensors")) < 40 * MEGABYTE
