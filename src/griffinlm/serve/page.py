"""The chat page: the files beside this one, read once, under names that are known in advance."""

from functools import partial
from importlib import resources

from fastapi import APIRouter, Response

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Content and type by path; the page itself is at `/`. Nothing else is in there."""
    found = {}
    folder = resources.files("griffinlm.serve") / "page"
    for file in folder.iterdir() if folder.is_dir() else ():
        content_type = CONTENT_TYPES.get("." + file.name.rpartition(".")[2])
        if file.is_file() and content_type is not None:
            found["/" if file.name == "index.html" else f"/{file.name}"] = file.read_bytes(), content_type
    return found


def page_router(files: dict[str, tuple[bytes, str]]) -> APIRouter:
    """A route for each file."""
    router = APIRouter()
    for path, (content, content_type) in files.items():
        router.add_api_route(path, partial(_file, content, content_type), methods=["GET"], include_in_schema=False)
    return router


def _file(content: bytes, content_type: str) -> Response:
    return Response(content, headers={**HEADERS, "content-type": content_type})
