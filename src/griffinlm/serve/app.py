"""The application: all routes, every fault in OpenAI's form, the guard around it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from griffinlm import __version__
from griffinlm.errors import GriffinError
from griffinlm.serve import (
    chat_completions,
    completions,
    embeddings,
    input_items,
    metrics,
    models,
    responses,
    states,
    status,
    tokens,
)
from griffinlm.serve.errors import ApiError, AsciiJSONResponse, as_api_error, error_response
from griffinlm.serve.guard import CLIENT_GONE, ClientGoneError, Guard
from griffinlm.serve.keys import ApiKeys
from griffinlm.serve.page import page_files, page_router
from griffinlm.serve.served import Served

FAMILIES = (
    chat_completions,
    completions,
    responses,
    input_items,
    embeddings,
    models,
    states,
    tokens,
    metrics,
    status,
)
OPEN_PATHS = frozenset({"/health", "/ready"})
"""Besides the page and its files."""
TOO_DEEP = "the request is nested too deeply"


def create_app(served: Served, keys: ApiKeys | None) -> tuple[Guard, FastAPI]:
    """What the network talks to, and the application inside it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        served.worker.start()
        try:
            yield
        finally:
            await served.close()

    app = FastAPI(
        title="griffinlm",
        version=__version__,
        lifespan=lifespan,
        default_response_class=AsciiJSONResponse,
        docs_url=None,
        redoc_url=None,
    )
    files = page_files()
    for router in (*(family.router for family in FAMILIES), page_router(files)):
        app.include_router(router)
    app.state.served = served
    app.state.guard = Guard(app, served.settings, keys, OPEN_PATHS | files.keys())
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(ApiError, _on_fault)
    app.add_exception_handler(GriffinError, _on_fault)
    app.add_exception_handler(Exception, _on_fault)
    app.add_exception_handler(RecursionError, _on_too_deep)
    app.add_exception_handler(ClientGoneError, _on_gone)
    return app.state.guard, app


async def _on_fault(request: Request, error: Exception) -> Response:
    body_field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(body_field, "field_info", None), "annotation", None)
    return error_response(as_api_error(error, frozenset(getattr(model, "model_fields", ()))))


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    response = error_response(ApiError(error.status_code, str(error.detail), code=code))
    response.headers.update(error.headers or {})
    return response


async def _on_too_deep(_: Request, __: Exception) -> Response:
    return error_response(ApiError(400, TOO_DEEP, code="invalid_json"))


async def _on_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _on_invalid(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with a request."""
    assert isinstance(error, RequestValidationError)
    first = _most_telling(error.errors())
    param = ".".join(map(str, _path(error.body, first)))[:200] or None
    match first["type"]:
        case "json_invalid":
            return error_response(ApiError(400, "the body is not JSON", code="invalid_json"))
        case "extra_forbidden":
            message, code = f"{param} is not supported", "unsupported_parameter"
        case "missing":
            message, code = f"{param or 'the body'} is missing", "missing_required_parameter"
        case _:
            message, code = f"{param or 'the body'}: {first['msg']}"[:500], "invalid_value"
    return error_response(ApiError(400, message, param=param, code=code))


def _path(body: Any, fault: Any) -> list[str | int]:
    """Where in a request a fault is, without the names of the forms that were tried there."""
    # Before the field stands where it came: "body", "query" or "path".
    where = list(fault["loc"][1:])
    if fault["loc"][0] != "body":
        return where
    path: list[str | int] = []
    for part in where:
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            path.append(part)
            body = body[part]
    return [*path, where[-1]] if fault["type"] == "missing" and where else path


def _most_telling(faults: Any) -> Any:
    """Of the ways in which a value fits none of several forms, the one that came furthest."""
    return max(faults, key=lambda fault: (fault["type"] == "extra_forbidden", len(fault["loc"])))
