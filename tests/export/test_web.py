"""The files of the page, with a stand-in for npm; the page itself is tested in a browser."""

import base64
import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from command_line import CommandLine
from small_models import PATTERNS

import griffinlm
from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import AttentionConfig, ModelConfig
from griffinlm.export import ExportError, export_web, web_runtime

RUNTIME = (*web_runtime.CPU_FILES, *web_runtime.WEBGPU_FILES)


@pytest.fixture
def griffin(capsys, monkeypatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Puts a program of that name, which runs the given lines, in the place of all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def npm(lines: str) -> None:
        (folder / "npm").write_text(f"#!/bin/sh\n{lines}\n", encoding="utf-8")
        (folder / "npm").chmod(stat.S_IRWXU)

    return npm


@pytest.fixture
def package(tmp_path, npm, monkeypatch) -> Path:
    """A package of the expected digest, which npm brings, with files that hold their own names."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in RUNTIME:
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(web_runtime, "SHA512", base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode())
    # The last argument is the folder where npm puts the package.
    npm(f'for place; do true; done\n/bin/cp {path} "$place"/it.tgz')
    return path


@pytest.mark.parametrize("has_webgpu", [False, True])
def test_the_page_is_complete(has_webgpu, package, tmp_path):
    directory = tmp_path / "page"
    description = export_web("eyas", directory, has_webgpu=has_webgpu)
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    runtime = {name for name in files if name.startswith("runtime/")}
    assert runtime == {f"runtime/{name}" for name in (RUNTIME if has_webgpu else web_runtime.CPU_FILES)}
    assert {"index.html", "app.js", "style.css", "worker.js", "service_worker.js", "files.js"} <= files
    assert {"model/model.json", "model/tokenizer.json", "model/model.onnx", "model/model.weights"} <= files
    assert json.loads((directory / "model" / "model.json").read_text(encoding="utf-8")) == description
    assert description["state_bytes"] == griffinlm.load("eyas", threads=1).new_state().nbytes


def test_the_version_follows_from_the_files(package, tmp_path):
    def version(name: str, **options: str) -> str:
        export_web("eyas", tmp_path / name, **options)
        return (tmp_path / name / "files.js").read_text(encoding="utf-8").split('"version": "')[1].split('"')[0]

    assert version("one") == version("other") != version("smaller", weights="int8")


def test_npm_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ExportError, match="npm is not installed"):
        export_web("eyas", tmp_path / "page")
    assert os.listdir(tmp_path) == []


def test_npm_that_fails_is_quoted_in_one_line(npm, tmp_path):
    npm("echo 'npm error network' >&2\necho 'npm error no host' >&2\nexit 1")
    with pytest.raises(
        ExportError, match=r"npm cannot fetch onnxruntime-web [\d.]+: npm error network npm error no host"
    ):
        export_web("eyas", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_another_package_than_the_known_one_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(web_runtime, "SHA512", "another digest")
    with pytest.raises(ExportError, match="expected another dig"):
        export_web("eyas", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_command_tells_files_and_sizes(griffin, package, tmp_path):
    run = griffin("export", "eyas", tmp_path / "page", "--for", "web", "--weights", "int8", "--json")
    assert run.status == 0, run.err
    assert run.json["files"]["model/model.weights"] == (tmp_path / "page/model/model.weights").stat().st_size
    assert "http.server" in griffin("export", "eyas", tmp_path / "other", "--for", "web").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--for", "desktop"], "--for is 'desktop'; allowed are web, mobile"),
        (["--for", "mobile", "--webgpu"], "--webgpu is given; only --for web has a use for it"),
        (["--for", "web", "--weights", "int3"], "int3"),
        (["--for", "web", "--window-dtype", "bfloat16"], "window_dtype is 'bfloat16'"),
        ([], "Missing option '--for'"),
    ],
)
def test_options_that_mean_nothing_are_refused(griffin, options, words, tmp_path):
    assert words in griffin.fails("export", "eyas", tmp_path / "page", *options)


def test_a_destination_that_is_taken_is_refused(griffin, package, tmp_path):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine").touch()
    assert "exists already" in griffin.fails("export", "eyas", tmp_path / "page", "--for", "web")


def test_a_model_without_a_tokenizer_or_with_global_attention_is_refused(griffin, tmp_path):
    sizes = {"vocab_size": 16, "width": 8, "num_layers": 1, "mlp_hidden": 8}
    attention = AttentionConfig(num_heads=2, head_size=4, window_tokens=5)
    local = ModelConfig(**sizes, block_pattern=PATTERNS["attention only"], attention=attention)
    unbounded = AttentionConfig(num_heads=2, head_size=4, window_tokens=None)
    endless = ModelConfig(**sizes, block_pattern=PATTERNS["Gemma"], attention=unbounded)
    for name, config, words in [("local", local, "has no tokenizer"), ("endless", endless, "has global attention")]:
        write_checkpoint(config, initial_tensors(config, 0), tmp_path / name, "griffinlm")
        assert words in griffin.fails("export", tmp_path / name, tmp_path / "page", "--for", "web")
