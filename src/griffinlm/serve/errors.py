"""Faults as OpenAI's clients expect them: a status, and `{"error": {message, type, param, code}}`."""

import json
from typing import Any

from fastapi.responses import JSONResponse

from griffinlm.errors import GriffinError
from griffinlm.executor import ExecutorError
from griffinlm.generation.grammar import GrammarError
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.store import SignatureError, StateNotFoundError, StoreError
from griffinlm.serve.logs import log_event
from griffinlm.text import TokenizerError

UNKNOWN_WAIT_SECONDS = 1
"""Told to a client where nobody knows when there will be room."""
LONGEST_WAIT_SECONDS = 120
"""Clients wait no longer than this for a second try."""

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))

INPUTS = ("messages", "input", "prompt", "tokens")
"""The fields that are read by the model, one of which a request has."""


class ServeError(GriffinError):
    """A setting of the server that cannot be."""


class RecordsError(StoreError):
    """Stored conversations that cannot be used, in words that a client may read."""


class DamagedRecordError(RecordsError):
    """A stored conversation that was changed, or belongs to another model or key."""


class ApiError(Exception):
    """An answer that is a refusal.

    Args:
        param: the field of the request that is at fault.
        retry_seconds: when a second try has a chance; None where it has none.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_seconds = retry_seconds

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, also in the middle of a stream."""
        return {
            "error": {"message": self.message, "type": _type_of(self.status), "param": self.param, "code": self.code}
        }

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_seconds is None:
            # A second try would do the same work and come to the same end.
            return {"x-should-retry": "false"} if self.status == 408 or self.status >= 500 else {}
        return {"retry-after": str(max(1, min(LONGEST_WAIT_SECONDS, round(self.retry_seconds))))}


class AsciiJSONResponse(JSONResponse):
    """JSON with every other character as an escape, so that whatever a client sent can be sent back."""

    def render(self, content: Any) -> bytes:
        return to_json(content)


class LongJSONResponse(AsciiJSONResponse):
    """One that takes a while to write: made on a thread, it lets others get on between its strings and numbers."""

    def render(self, content: Any) -> bytes:
        # Bytes are joined without the interpreter's lock, a text is not.
        return b"".join([part.encode("ascii") for part in ENCODER.iterencode(content)])


def to_json(content: Any) -> bytes:
    """ASCII; a number that JSON has not is a fault of ours."""
    return ENCODER.encode(content).encode("ascii")


def error_response(error: ApiError) -> AsciiJSONResponse:
    """An error with its status and headers."""
    return AsciiJSONResponse(error.body, error.status, error.headers)


def as_api_error(error: Exception, fields: frozenset[str] = frozenset()) -> ApiError:
    """What a client is told of a fault: a user's in full, one of ours without its words, which may name files.

    Args:
        fields: those that the request may have. A message that begins with one of them is about it.
    """
    match error:
        case ApiError():
            return error
        case QueueFullError():
            seconds = UNKNOWN_WAIT_SECONDS if error.seconds is None else error.seconds
            return ApiError(429, str(error), code="rate_limit_exceeded", retry_seconds=seconds)
        case StateNotFoundError():
            return ApiError(404, str(error), code="not_found")
        case SignatureError():
            return ApiError(400, str(error), code="invalid_state")
        case RecordsError():
            return ApiError(507, str(error), code="store_failed")
        case StoreError():
            log_event("the store cannot be used", fault=str(error))
            return ApiError(507, "the server's store of states cannot be used", code="store_failed")
        case GrammarError():
            param = "text" if "text" in fields else "response_format"
            return ApiError(400, str(error), param=param, code="invalid_schema")
        case TokenizerError() | ExecutorError():
            param = next((name for name in INPUTS if name in fields), None)
            return ApiError(400, str(error), param=param, code="invalid_value")
        case GriffinError():
            first = str(error).split(" ", 1)[0].split("[", 1)[0].split(".", 1)[0]
            return ApiError(400, str(error), param=first if first in fields else None, code="invalid_value")
        case _:
            return ApiError(500, "the server had an error of its own while it answered", code="internal_error")


def _type_of(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 408:
            return "timeout"
        case 429:
            return "rate_limit_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"
