"""ONNX Runtime for browsers, fetched with npm: one version, known by its digest."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from griffinlm.errors import in_one_line
from griffinlm.export.description import ExportError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, as npm's registry has it."""

CPU_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
WEBGPU_FILES = (
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
FETCH_SECONDS = 600


def fetch_runtime(folder: Path, has_webgpu: bool) -> None:
    """Writes the files that a page loads into `folder`.

    Raises:
        ExportError: npm is missing, cannot fetch the package, or brings another one than the one that is known.
    """
    with _archive() as path:
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise ExportError(
                f"npm brought a {PACKAGE} {VERSION} with SHA-512 {digest[:12]}...; expected {SHA512[:12]}..."
            )
        _unpack(path, [*CPU_FILES, *(WEBGPU_FILES if has_webgpu else ())], folder)


@contextmanager
def _archive() -> Iterator[Path]:
    """The package as npm's registry or npm's cache gives it, in a temporary directory."""
    npm = shutil.which("npm")
    if npm is None:
        raise ExportError("npm is not installed; it fetches ONNX Runtime for the page", hint="https://nodejs.org")
    with tempfile.TemporaryDirectory(prefix="griffinlm-") as place:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--prefer-offline", "--pack-destination", place]
        # Anywhere else npm would read the settings of the project that it stands in.
        run = _run(command, place)
        found = [*Path(place).glob("*.tgz")]
        if run.returncode or len(found) != 1:
            words = run.stderr.strip() or run.stdout.strip() or f"exit status {run.returncode}"
            raise ExportError(f"npm cannot fetch {PACKAGE} {VERSION}: {in_one_line(words)}")
        yield found[0]


def _run(command: Sequence[str], place: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "npm_config_update_notifier": "false"}
    try:
        return subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(f"npm did not bring {PACKAGE} {VERSION} in {FETCH_SECONDS} seconds") from error


def _unpack(archive: Path, names: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as package:
        for name in names:
            content = package.extractfile(f"package/dist/{name}")
            assert content is not None, f"{name} is no file of {PACKAGE} {VERSION}"
            (folder / name).write_bytes(content.read())
