"""What one client can take from the others at most, and what stays of what it deletes."""

import asyncio
import gc
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

import griffinlm
from griffinlm.generation.budget import plan_memory
from griffinlm.generation.job import End, Job, Usage
from griffinlm.generation.store import StoreError
from griffinlm.serve import input_items, responses, states
from griffinlm.serve import run as run_module
from griffinlm.serve.app import create_app
from griffinlm.serve.completions import CompletionRequest, _Shape
from griffinlm.serve.errors import AsciiJSONResponse, LongJSONResponse
from griffinlm.serve.guard import MOST_TOLD, PART_BYTES, ClientGoneError, Guard, _Exchange
from griffinlm.serve.keys import LOCAL_TENANT, ApiKeys
from griffinlm.serve.run import _Protocol, build
from griffinlm.serve.served import TEXT_THREADS, Asker, Served
from griffinlm.serve.settings import Settings
from serve.server_process import ServerProcess, server_errors
from serve.test_guards import CHAT, gauges, is_idle, until
from serve.test_records import record
from serve.test_responses import FIRST, SECOND, respond, said

SHARE = 2


@pytest.fixture(scope="module")
def shared_out(tmp_path_factory):
    """A server where nobody may have more than `SHARE` answers open, and nothing is kept yet."""
    process = ServerProcess("--max-per-key", str(SHARE), "--state-dir", tmp_path_factory.mktemp("states"))
    with process.client() as client:
        yield client
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def run(work):
    # In a thread of its own: a browser's test in the same process leaves a loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def served() -> Served:
    """No more of a server than its threads."""
    nothing: Any = None
    return Served("m", nothing, Settings(), nothing, nothing, nothing, nothing, b"")


# States.


def test_nothing_stays_of_what_is_deleted_at_once_nor_of_what_is_not_stored(shared_out):
    for number in range(10):
        response = respond(shared_out, f"My secret number is {number}.", max_output_tokens=3)
        assert shared_out.delete(f"/v1/responses/{response['id']}").json()["deleted"]
        respond(shared_out, FIRST, store=False)
    until(lambda: is_idle(shared_out))
    assert gauges(shared_out)["store_states"] == 0


def test_a_fork_that_outlives_its_origin_takes_the_states_with_it(shared_out):
    first = respond(shared_out, FIRST)
    fork = shared_out.post(f"/v1/states/{first['id']}/fork", json={}).json()
    for one in (first, fork):
        until(lambda: is_idle(shared_out))
        assert gauges(shared_out)["store_states"] > 0
        assert shared_out.delete(f"/v1/states/{one['id']}").status_code == 200
    assert gauges(shared_out)["store_states"] == 0


def test_what_is_not_stored_goes_on_from_what_is(shared_out):
    first = respond(shared_out, FIRST, temperature=0)
    second = respond(shared_out, SECOND, previous_response_id=first["id"], temperature=0, store=False)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > 0
    assert shared_out.delete(f"/v1/responses/{first['id']}").status_code == 200


# Shares.


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": ["a"] * (SHARE + 1)}, "prompt"),
        ("/v1/completions", {"prompt": "a", "n": SHARE + 1}, "n"),
        (CHAT, {"messages": said(FIRST), "n": SHARE + 1}, "n"),
    ],
)
def test_more_answers_than_a_key_may_ever_have_open_are_no_matter_of_waiting(shared_out, path, fields, param):
    response = shared_out.post(path, json={"model": "eyas", "max_tokens": 1, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert f"at most {SHARE} answers" in response.json()["error"]["message"]


def test_texts_to_be_embedded_go_by_as_many_as_a_key_may_have_open(shared_out):
    response = shared_out.post("/v1/embeddings", json={"model": "eyas", "input": ["word " * 2000] * (2 * SHARE + 1)})
    assert response.status_code == 200, response.text
    assert len(response.json()["data"]) == 2 * SHARE + 1


# Sizes.


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"prompt": [5] * 16_385, "n": 64, "echo": True}, "echo"),
        ("/v1/completions", {"prompt": [[5] * 32_768, [5]], "n": 2, "echo": True, "logprobs": 0}, "echo"),
        (
            "/v1/completions",
            {"prompt": ["a"] * 3, "n": 3, "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (CHAT, {"messages": said(FIRST), "n": 9, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": said(FIRST), "metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ("/v1/responses", {"input": FIRST, "metadata": {"k": "v" * 513}}, "metadata.k"),
        ("/v1/responses", {"input": FIRST, "metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}"),
        ("/v1/responses", {"input": FIRST, "user": "u" * 513}, "user"),
    ],
)
def test_what_takes_more_than_its_share_of_time_or_room_is_400(client, path, fields, param):
    response = client.post(path, json={"model": "eyas", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith(param)


def test_metadata_within_its_bounds_is_told_again(client):
    metadata = {f"{number}".rjust(64): "v" * 512 for number in range(16)}
    assert respond(client, FIRST, max_output_tokens=1, metadata=metadata)["metadata"] == metadata


# Texts.


class CountingTokenizer:
    """Writes every token as "x", and knows where it was asked to."""

    bos_id = 0

    def __init__(self):
        self.threads = []

    def decode(self, token_ids):
        self.threads.append(threading.current_thread().name)
        return "x" * len(token_ids)

    def token_bytes(self, token):
        self.threads.append(threading.current_thread().name)
        return b"x"

    def stream(self):
        return SimpleNamespace(push=lambda token: "x")


def shape_of(tokenizer, threads, **fields) -> _Shape:
    async def on_text_thread(function, *arguments):
        return await threads.on_text_thread("a", function, *arguments)

    asker: Any = SimpleNamespace(served=SimpleNamespace(tokenizer=tokenizer), on_text_thread=on_text_thread)
    body = CompletionRequest(model="m", prompt=[0, 1, 2], echo=True, **fields)
    return _Shape(asker, body, is_text=False)


def test_a_prompt_is_written_once_for_all_its_answers():
    tokenizer, job = CountingTokenizer(), Job("a", [0, 1, 2], num_answers=5)
    ends = [End(job, answer, "stop", "y", [1], None, None, Usage(3, 0, 1)) for answer in range(5)]
    told = shape_of(tokenizer, served(), n=5).whole([job], [ends])
    assert bytes(told.body).count(b'"xxxy"') == 5
    assert len(tokenizer.threads) == 1


@pytest.mark.parametrize("logprobs", [None, 0])
def test_prompts_in_a_stream_are_written_off_the_event_loop(logprobs):
    class OneEnd:
        def __init__(self, job):
            self.job = job

        async def __aiter__(self):
            yield End(self.job, 0, "stop", "y", [1], [], [], Usage(3, 0, 1))

    tokenizer = CountingTokenizer()
    answers: Any = OneEnd(Job("a", [0, 1, 2]))

    async def work():
        shape = shape_of(tokenizer, served(), logprobs=logprobs, stream=True)
        return [chunk async for chunk in shape.chunks([answers])]

    assert any(b'"xxx' in chunk for chunk in run(work))
    assert tokenizer.threads
    assert all(name.startswith("griffinlm-text") for name in tokenizer.threads)


def test_texts_of_one_tenant_take_one_thread_and_what_nobody_waits_for_is_not_begun():
    begun, has_begun, gate = [], threading.Event(), threading.Event()

    def hold(number):
        begun.append(number)
        has_begun.set()
        gate.wait()

    async def work():
        threads = served()
        tasks = [asyncio.ensure_future(threads.on_text_thread("a", hold, number)) for number in range(TEXT_THREADS - 1)]
        await threads.on_text_thread("b", has_begun.wait)
        assert await threads.on_text_thread("b", str, 1) == "1"
        assert begun == [0]
        tasks[0].cancel()
        tasks[1].cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        assert await threads.on_text_thread("b", str, 2) == "2"
        assert begun == [0], "the first has not ended on its thread"
        gate.set()
        await asyncio.gather(*tasks[2:])
        del tasks
        gc.collect()
        return len(threads._texts._turns)

    try:
        num_turns = run(work)
    finally:
        gate.set()
    assert num_turns == 0, "turns of tenants that have no texts are remembered"
    assert begun == [0, *range(2, TEXT_THREADS - 1)]


def test_records_of_one_tenant_hold_those_of_another_up_for_one_turn():
    begun, gate = [], threading.Event()

    def hold(name):
        begun.append(name)
        gate.wait()

    async def work():
        threads = served()
        tasks = [asyncio.ensure_future(threads.on_record_thread("a", hold, "a")) for _ in range(5)]
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(threads.on_record_thread("b", hold, "b")))
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*tasks)

    try:
        run(work)
    finally:
        gate.set()
    assert begun == ["a", "b", *"aaaa"]


def test_texts_of_a_client_that_left_are_not_begun():
    begun, gate = [], threading.Event()

    async def gone():
        return {"type": "http.disconnect"}

    request: Any = SimpleNamespace(receive=gone)

    async def work():
        threads = served()
        first = asyncio.ensure_future(threads.on_text_thread("a", gate.wait))
        await asyncio.sleep(0)
        asker = Asker(threads, "a", request)
        second = asyncio.ensure_future(asker.on_text_thread(begun.append, 1))
        for _ in range(100):
            await asyncio.sleep(0)
        gate.set()
        with pytest.raises(ClientGoneError):
            await second
        await first
        await threads.on_text_thread("a", str)

    run(work)
    assert begun == []


def test_without_a_directory_what_was_said_takes_an_eighth_of_the_memory_budget(tiny_model_directory):
    model = griffinlm.load(tiny_model_directory)
    kept = build(model, "tiny", replace(Settings(), memory_budget_bytes=1 << 24))
    told = [record(number, body={"text": "x" * (1 << 20)}) for number in range(3)]
    for one in told:
        kept.records.put("t", [one])
    assert [heading.id for heading in kept.records.newest("t", 10)] == ["resp_2"]
    with pytest.raises(StoreError, match=f"does not fit into the {1 << 21} bytes"):
        kept.records.put("t", told)
    whole = plan_memory(1 << 24, kept.worker.service.state_bytes, extra=model.engine.extra(None))
    assert kept.store.cap_bytes <= whole.store_bytes - (1 << 21)


def test_what_is_long_is_written_and_read_beside_the_event_loop_and_the_thread_of_records(
    tiny_model_directory, monkeypatch
):
    kept = build(griffinlm.load(tiny_model_directory), "tiny", replace(Settings(), memory_budget_bytes=1 << 24))
    guard, _ = create_app(kept, None)
    kept.records.put(LOCAL_TENANT, [record(1, body={"output": []})])
    threads = []

    def noting(function):
        def noted(*arguments):
            threads.append(threading.current_thread().name)
            return function(*arguments)

        return noted

    for module, name in [
        (states, "pack"),
        (states, "unpack"),
        (states, "LongJSONResponse"),
        (responses, "LongJSONResponse"),
        (input_items, "LongJSONResponse"),
    ]:
        monkeypatch.setattr(module, name, noting(getattr(module, name)))

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://localhost") as client:
            data = (await client.get("/v1/states/resp_1/download")).content
            yield await client.post("/v1/states/upload", content=data)
            for path in ("states/resp_1", "responses/resp_1", "responses/resp_1/input_items"):
                yield await client.get(f"/v1/{path}")

    async def statuses():
        return [response.status_code async for response in ask()]

    assert run(statuses) == [200] * 4
    assert [name.rpartition("_")[0] for name in threads] == ["griffinlm-text"] * 5


def test_a_long_answer_is_written_as_any_other():
    content = {"a": ['\u3000"', 1, 1.5, None, True, {}], "b": {"c": []}}
    assert LongJSONResponse(content).body == AsciiJSONResponse(content).body
    with pytest.raises(ValueError, match="JSON compliant"):
        LongJSONResponse([float("nan")])


def test_a_tenant_holds_a_few_answers_with_what_is_stored_and_all_others():
    keys = ["key-of-tenant-a", "key-of-tenant-b"]
    begun, gate = [], asyncio.Event()

    async def app(scope, receive, send):
        begun.append((keys.index(scope["headers"][1][1].decode().split()[1]), scope["path"]))
        await gate.wait()

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_):
        return

    def ask(guard, key, method, path):
        headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]
        scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "headers": headers}
        return asyncio.ensure_future(guard(scope, receive, send))

    async def work():
        guard = Guard(app, Settings(), ApiKeys(keys), frozenset())
        tasks = [ask(guard, keys[0], "POST", "/v1/states/download") for _ in range(MOST_TOLD)]
        tasks += [ask(guard, keys[0], "GET", f"/v1/responses/{number}") for number in range(5)]
        tasks += [ask(guard, keys[0], "DELETE", "/v1/states/1"), ask(guard, keys[1], "GET", "/v1/states/1")]
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == [(0, "/v1/states/download")] * MOST_TOLD + [(0, "/v1/states/1"), (1, "/v1/states/1")]
        gate.set()
        await asyncio.gather(*tasks)
        assert len(begun) == len(tasks)

    run(work)


# Connections.


def test_long_bodies_are_sent_in_parts():
    sent = []

    async def send(message):
        sent.append(message)

    nothing: Any = None
    body = bytes(range(256)) * 800
    for is_more in (False, True):
        sent.clear()
        exchange = _Exchange({"headers": []}, nothing, send)
        message = {"type": "http.response.body", "body": body, "more_body": is_more}
        run(lambda: exchange.send(message))  # noqa: B023  (it is run at once)
        assert b"".join(part["body"] for part in sent) == body
        assert max(len(part["body"]) for part in sent) == PART_BYTES
        assert [part["more_body"] for part in sent] == [True] * (len(sent) - 1) + [is_more]


@pytest.mark.parametrize("is_complete", [True, False])
@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"])
def test_connections_of_clients_that_take_nothing_end(monkeypatch, is_complete, head):
    monkeypatch.setattr(run_module, "WRITE_SECONDS", 0.0)
    lost = []

    class Watched(_Protocol):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            lost.append(self)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * (4 << 20), "more_body": not is_complete})

    async def work():
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_keep_alive=0)
        ours, theirs = socket.socketpair()
        theirs.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n")
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(lambda: Watched(config, ServerState(), {}), ours)
        for _ in range(1000):
            await asyncio.sleep(0)
        num_lost = len(lost)
        theirs.close()
        return num_lost

    assert run(work) == 1
