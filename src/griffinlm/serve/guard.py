"""What stands between the network and the routes: who may ask, how much, and from where."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from starlette.requests import ClientDisconnect

from griffinlm.serve.errors import ApiError, error_response
from griffinlm.serve.json_body import require_few_parts
from griffinlm.serve.keys import LOCAL_TENANT, ApiKeys
from griffinlm.serve.logs import log_event, log_fault
from griffinlm.serve.settings import Settings, is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

UPLOADS = frozenset({"/v1/states/upload"})
"""Paths whose bodies may be as large as an upload."""
MOST_TOLD = 4
"""Answers with what is stored that a tenant gets at once: each stays in memory until its client has taken it."""
HTTP_VERSIONS = ("1.0", "1.1", "2", "3")
CLIENT_GONE = 499
"""The status in the logs where nobody was left to be answered."""
BODY_SECONDS = 120.0
"""For a whole body, however large."""
WRITE_SECONDS = 30.0
"""For how long a client may take nothing of what is sent to it."""
PART_BYTES = 64 << 10
"""A longer body is sent in parts, each once the client has taken most of those before it."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        open_paths: what is answered without a key.
    """

    def __init__(self, app: Any, settings: Settings, keys: ApiKeys | None, open_paths: frozenset[str]) -> None:
        self._app, self._settings, self._keys, self._open_paths = app, settings, keys, open_paths
        self.is_draining = False
        """Whether new work is refused."""
        self.num_open = 0
        """Requests that are being answered."""
        self._uploading = asyncio.Semaphore(1)
        self._telling: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By tenant."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        self.num_open += 1
        exchange = _Exchange(scope, receive, send)
        try:
            await self._answer(exchange)
        except ApiError as error:
            await exchange.refuse(error)
        except (ClientGoneError, ClientDisconnect):
            exchange.status = exchange.status or CLIENT_GONE
        except Exception as error:
            log_fault("a request failed", error)
            if exchange.status is not None:
                raise
            await exchange.refuse(ApiError(500, "the server had an error of its own", code="internal_error"))
        finally:
            self.num_open -= 1
            exchange.log()

    async def _answer(self, exchange: "_Exchange") -> None:
        scope, path = exchange.scope, exchange.scope["path"]
        if scope["http_version"] not in HTTP_VERSIONS:
            raise ApiError(505, f"HTTP version is {scope['http_version']}; allowed are {', '.join(HTTP_VERSIONS)}")
        self._check_origin(exchange)
        scope["state"]["tenant"] = LOCAL_TENANT
        if path not in self._open_paths:
            if self._keys is not None:
                scope["state"]["tenant"] = exchange.tenant = self._tenant(exchange)
            if self.is_draining and scope["method"] != "GET":
                raise ApiError(503, "the server is about to end", code="unavailable", retry_seconds=5)
        if path in UPLOADS:
            async with self._uploading:
                body = await exchange.body(self._settings.largest_upload_bytes, self._settings.idle_seconds)
                await self._app(scope, exchange.replayed(body), exchange.send)
            return
        body = await exchange.body(self._settings.largest_body_bytes, self._settings.idle_seconds)
        require_few_parts(body)
        if _is_told(scope["method"], path):
            async with self._telling.setdefault(scope["state"]["tenant"], asyncio.Semaphore(MOST_TOLD)):
                await self._app(scope, exchange.replayed(body), exchange.send)
            return
        await self._app(scope, exchange.replayed(body), exchange.send)

    def _tenant(self, exchange: "_Exchange") -> str:
        assert self._keys is not None
        tenant = self._keys.tenant(exchange.header(b"authorization"))
        if tenant is None:
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
        return tenant

    def _check_origin(self, exchange: "_Exchange") -> None:
        """A page of another site may have this machine's name looked up as its own; its Host and Origin tell."""
        host, origin = exchange.header(b"host"), exchange.header(b"origin")
        if is_loopback(self._settings.host) and (host is None or not is_loopback(_name_of(f"//{host}") or "")):
            raise ApiError(403, "the host of this request is not this machine", code="forbidden_host")
        if origin is not None and _address_of(origin) != _address_of(f"{origin.partition(':')[0]}://{host}"):
            raise ApiError(403, "the request comes from a page of another site", code="forbidden_origin")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class _Exchange:
    """One request and its answer, on the way through."""

    def __init__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.scope, self._receive, self._send = scope, receive, send
        scope.setdefault("state", {})
        self.id = f"req_{secrets.token_hex(16)}"
        self.tenant: str | None = None
        self.status: int | None = None
        self._start = time.monotonic()

    def header(self, name: bytes) -> str | None:
        """The value of a header that is there once; several are none."""
        values = [value for key, value in self.scope["headers"] if key == name]
        return values[0].decode("latin-1") if len(values) == 1 else None

    async def body(self, largest_bytes: int, idle_seconds: float) -> bytes:
        """All of the body.

        Raises:
            ApiError: it is too large, told to be of two lengths, or does not come.
        """
        told = self.header(b"content-length")
        if told is not None and self.header(b"transfer-encoding") is not None:
            # Something on the way may have taken the end of another for that of this one.
            raise ApiError(400, "content-length and transfer-encoding are both given; only one may be")
        if told is not None and told.isascii() and told.isdigit() and int(told[:20]) > largest_bytes:
            raise _too_large(largest_bytes)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await self._read_body(largest_bytes, idle_seconds)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s", code="timeout") from None

    async def _read_body(self, largest_bytes: int, idle_seconds: float) -> bytes:
        parts, num_bytes, is_more = [], 0, True
        while is_more:
            try:
                async with asyncio.timeout(idle_seconds):
                    message = await self._receive()
            except TimeoutError:
                raise ApiError(408, f"no more of the body came for {idle_seconds:g} s", code="timeout") from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            num_bytes, is_more = num_bytes + len(parts[-1]), message.get("more_body", False)
            if num_bytes > largest_bytes:
                raise _too_large(largest_bytes)
        return b"".join(parts)

    def replayed(self, body: bytes) -> Receive:
        """Gives the body once, then what else comes."""
        is_given = False

        async def receive() -> Message:
            nonlocal is_given
            if is_given:
                return await self._receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return receive

    async def send(self, message: Message) -> None:
        """Passes an answer on, with the request's id. A client that takes nothing for a while is cut off."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.id.encode())]
        for part in _parts(message):
            try:
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._send(part)
            except TimeoutError:
                raise ClientGoneError from None

    async def refuse(self, error: ApiError) -> None:
        """Sends an error and closes: what is left of the request's body is not read."""
        response = error_response(error)
        response.headers["connection"] = "close"

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        await response(self.scope, receive, self.send)

    def log(self) -> None:
        route = self.scope.get("route")
        log_event(
            "request",
            id=self.id,
            method=self.scope["method"] if self.scope["method"].isalpha() else "?",
            route=getattr(route, "path", None),
            status=self.status,
            seconds=round(time.monotonic() - self._start, 4),
            tenant=None if self.tenant is None else self.tenant[:8],
        )


def _parts(message: Message) -> Iterator[Message]:
    """A message as several where its body is long."""
    body, is_more = memoryview(message.get("body", b"")), message.get("more_body", False)
    if len(body) <= PART_BYTES:
        yield message
        return
    for start in range(0, len(body), PART_BYTES):
        end = start + PART_BYTES
        yield {**message, "body": bytes(body[start:end]), "more_body": is_more or end < len(body)}


def _is_told(method: str, path: str) -> bool:
    """Whether a request is for what is stored, which may be long."""
    return path.startswith(("/v1/states", "/v1/responses")) and (method == "GET" or path.endswith("/download"))


def _too_large(largest_bytes: int) -> ApiError:
    return ApiError(413, f"the body is larger than {largest_bytes} bytes", code="request_too_large")


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _address_of(url: str) -> tuple[str | None, int | None] | None:
    """Host and port."""
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
