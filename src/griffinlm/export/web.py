"""A static page that runs a model in the browser: the chat page of the server around a model of its own."""

import hashlib
import json
import re
import shutil
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.edge.portable import GRAPH_FILE, WEIGHTS_FILE, build_portable_graph, write_portable_graph
from griffinlm.export.description import ExportError, describe, open_exported
from griffinlm.export.page_tokenizer import TOKENIZER_FILE, page_settings
from griffinlm.export.web_runtime import fetch_runtime

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
BYTES = "application/octet-stream"
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'"
)
"""A page of a file may say all of it but who may frame it, which the service worker adds."""
WORKER_FILES = ("worker.js", "answers.js", "model.js", "tokenizer.js", "sealed.js", "service_worker.js")
"""What the page's own thread does not load."""


def export_web(
    path_or_name: str,
    destination: Path,
    weights: str | None = None,
    window_dtype: str = "float32",
    has_webgpu: bool = False,
) -> dict[str, Any]:
    """Writes the page with model, tokenizer and ONNX Runtime; `destination` appears when it is complete, or not at all.

    Args:
        has_webgpu: ships the WebGPU runtime too, which the page takes where the browser has a GPU.

    Returns:
        The description of the model that lies beside it as `model/model.json`.

    Raises:
        GriffinError: the model cannot be opened or exported, npm is missing, or `destination` is not free.
    """
    exported = open_exported(path_or_name, weights, window_dtype)
    source = exported.checkpoint.tokenizer_directory
    if source is None:
        raise ExportError(f"{path_or_name} has no tokenizer; the page needs one")
    description = {
        **describe(exported),
        "tokenizer": page_settings(exported.model.tokenizer, source),
        "graph": GRAPH_FILE,
        "weights": WEIGHTS_FILE,
        "has_webgpu": has_webgpu,
    }
    with new_directory(destination) as folder:
        model = folder / "model"
        model.mkdir()
        write_portable_graph(build_portable_graph(exported.checkpoint, window_dtype), model)
        (model / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        shutil.copyfile(source / TOKENIZER_FILE, model / TOKENIZER_FILE)
        fetch_runtime(folder / "runtime", has_webgpu)
        _write_page(folder)
        (folder / "files.js").write_text(_list_of_files(folder), encoding="utf-8")
    return description


def _write_page(folder: Path) -> None:
    """The server's page, in which the files beside this one take the place of those of their names."""
    for page in (resources.files("griffinlm.serve") / "page", resources.files("griffinlm.export") / "web_page"):
        for file in page.iterdir():
            _copy(file, folder)
    index = (folder / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(_own_head(index, folder), encoding="utf-8")


def _copy(file: Traversable, folder: Path) -> None:
    if file.is_file() and Path(file.name).suffix in CONTENT_TYPES:
        (folder / file.name).write_bytes(file.read_bytes())


def _own_head(index: str, folder: Path) -> str:
    """The page's text with its policy, since no server says it, and with the modules that it loads here."""
    without, num_preloads = re.subn(r'<link rel="modulepreload"[^>]*>\n', "", index)
    modules = sorted(file.name for file in folder.glob("*.js") if file.name not in (*WORKER_FILES, "app.js"))
    preloads = "".join(f'<link rel="modulepreload" href="{name}">\n' for name in modules)
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    head = without.replace('<link rel="icon"', f'{policy}<link rel="icon"', 1)
    head = head.replace('<script type="module"', f'{preloads}<script type="module"', 1)
    assert num_preloads
    assert policy in head
    assert preloads in head
    return head


def _list_of_files(folder: Path) -> str:
    """`files.js` of the service worker: what to keep, and a version that changes with any byte of it."""
    digest, files = hashlib.sha256(), {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == "service_worker.js":
            continue
        with open(path, "rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
        files[name] = {"type": CONTENT_TYPES.get(path.suffix, BYTES), "bytes": path.stat().st_size}
    policy = f"{POLICY}; frame-ancestors 'none'"
    table = {"version": digest.hexdigest()[:16], "policy": policy, "files": files}
    return f"self.EXPORTED = {json.dumps(table, indent=1)};\n"
