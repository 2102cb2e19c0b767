"""The part of the Hugging Face hub that a download uses, on loopback, with faults on demand."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = hashlib.sha1(b"the only commit").hexdigest()


@dataclass
class Hub:
    """What is served, and what was asked for."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository -> file -> content."""
    gated: set[str] = field(default_factory=set)
    cut_after: dict[str, int] = field(default_factory=dict)
    """File -> number of bytes after which the connection is closed, once."""
    shortened: set[str] = field(default_factory=set)
    """Files whose body is one byte shorter than the listing says."""
    downloads: list[tuple[str, int]] = field(default_factory=list)
    """File and first byte of every body that was asked for."""
    endpoint: str = ""


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub in a thread of its own, on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        listing = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([\w.-]+))?(?:/)?", path)
        content = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path)
        found = listing or content
        repository = found[1] if found else ""
        if repository not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
        elif (found and found[3 if listing else 2]) not in ("main", COMMIT, None):
            self._refuse(404, "RevisionNotFound")
        elif listing:
            self._json(self._tree(repository) if listing[2] == "tree" else self._info(repository))
        elif repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif content and content[3] in self.hub.repositories[repository]:
            self._file(content[3], self.hub.repositories[repository][content[3]], with_body)
        else:
            self._refuse(404, "EntryNotFound")

    def _info(self, repository: str) -> dict[str, Any]:
        files = [{"rfilename": name} for name in self.hub.repositories[repository]]
        return {"id": repository, "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0, "private": False}

    def _tree(self, repository: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in self.hub.repositories[repository].items()
        ]

    def _file(self, name: str, content: bytes, with_body: bool) -> None:
        start = 0
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
        body = content[start:]
        if with_body:
            self.hub.downloads.append((name, start))
            if name in self.hub.shortened:
                body = body[:-1]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        cut = self.hub.cut_after.pop(name, None)
        self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
