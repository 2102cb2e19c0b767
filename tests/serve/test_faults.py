"""Faults of the server's own: told without their words, to clients and in the logs."""

import asyncio
import io
import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest

import griffinlm
from griffinlm.generation.store import StoreError
from griffinlm.serve.app import create_app
from griffinlm.serve.errors import ApiError, RecordsError, as_api_error
from griffinlm.serve.logs import start_logs
from griffinlm.serve.run import build
from griffinlm.serve.settings import Settings


@pytest.fixture
def logs(monkeypatch):
    """What is logged from here on, as objects."""
    root, own, stream = logging.root, logging.getLogger("griffinlm.serve"), io.StringIO()
    before = root.handlers, root.level, own.level, root.manager.disable
    monkeypatch.setattr(sys, "stderr", stream)
    start_logs()
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])
    logging.disable(before[3])


def test_a_fault_in_a_route_is_500_in_openais_form(tiny_model_directory, logs):
    settings = replace(Settings(), memory_budget_bytes=1 << 24)
    guard, app = create_app(build(griffinlm.load(tiny_model_directory), "tiny", settings), None)

    async def faulty():
        raise RuntimeError("words that nobody is told")

    async def ask():
        app.add_api_route("/faulty", faulty)
        transport = httpx.ASGITransport(guard, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/faulty")

    # In a thread of its own: a browser test may have left an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        response = thread.submit(asyncio.run, ask()).result()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert response.headers["x-should-retry"] == "false"
    assert "words" not in response.text
    assert [line["fault"][0] for line in logs() if line["level"] == "error"] == ["RuntimeError"]


def test_what_libraries_log_is_json_without_what_they_held(logs):
    logging.getLogger("asyncio").error("a task failed\nfuture: <Task exception='what a client said'>")
    logging.getLogger("uvicorn.error").warning("odd")
    assert [line["message"] for line in logs()] == ["a task failed", "odd"]


def test_clients_are_not_told_what_the_store_says_of_its_files_and_the_log_is(logs):
    error = as_api_error(StoreError("state store /srv/secret: Input/output error"))
    assert (error.status, error.body["error"]["code"]) == (507, "store_failed")
    assert "/srv" not in error.message
    assert "/srv/secret: Input/output error" in logs()[-1]["fault"]
    assert as_api_error(RecordsError("there is no room")).message == "there is no room"


@pytest.mark.parametrize(("status", "may"), [(400, True), (408, False), (429, True), (500, False), (507, False)])
def test_clients_repeat_nothing_that_would_end_alike(status, may):
    assert ("x-should-retry" not in ApiError(status, "a fault").headers) == may
