"""Killed at any moment, a server comes back with every conversation that it had acknowledged."""

import contextlib
import json
import os
import random
import resource
import threading

import httpx
import pytest
from adapters import random_factors, write_adapter

import griffinlm
from serve.raw import connect, request_bytes
from serve.server_process import ServerProcess, server_errors
from serve.test_chat_completions import events
from serve.test_guards import CHAT, gauges, is_idle, nested, until
from serve.test_responses import FIRST, SECOND, respond, said, text_of

OPTIONS = {"temperature": 0.8, "seed": 5}


def limit_files(process, num_bytes):
    """From now on the server can write to no file beyond so many bytes, as if the disk were full."""
    _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (num_bytes, most))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs limits of another process, as Linux has them")
def test_on_a_full_disk_what_is_to_be_stored_is_refused_and_all_else_goes_on(tmp_path):
    process = ServerProcess("--state-dir", tmp_path)
    with process.client() as client:
        before = respond(client, FIRST, temperature=0)
        limit_files(process, 0)
        body = {"model": "eyas", "input": SECOND, "max_output_tokens": 4, "previous_response_id": before["id"]}
        chat = {"model": "eyas", "messages": said(FIRST), "max_tokens": 4}
        for _ in range(2):
            refused = client.post("/v1/responses", json=body)
            assert refused.status_code == 507, refused.text
            assert refused.json()["error"]["code"] == "store_failed"
            stream = client.post("/v1/responses", json={**body, "stream": True})
            assert json.loads(events(stream)[-1][1])["error"]["code"] == "store_failed"
            assert client.post("/v1/responses", json={**body, "store": False}).status_code == 200
            assert client.post("/v1/chat/completions", json=chat).status_code == 200
            assert client.get(f"/v1/responses/{before['id']}").json() == before
        limit_files(process, resource.RLIM_INFINITY)
        second = respond(client, SECOND, previous_response_id=before["id"], temperature=0)
        assert text_of(second) == text_of(respond(client, said(FIRST, text_of(before), SECOND), temperature=0))
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def talk_until_killed(process, process_number):
    """Conversations side by side until the server dies; what it acknowledged of each, by id."""
    told: dict[str, list[str]] = {}

    def talk(number):
        texts, last = [], None
        try:
            with process.client() as client:
                while True:
                    question = f"{FIRST} {process_number} {number} {len(texts)}"
                    body = {"model": "eyas", "input": question, "max_output_tokens": 8, **OPTIONS}
                    if last is not None:
                        body["previous_response_id"] = last
                    answer = client.post("/v1/responses", json=body).json()
                    texts = [*texts, question, text_of(answer)]
                    last = answer["id"]
                    told[last] = texts
        except (httpx.HTTPError, OSError):
            return

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    return told, threads


@pytest.mark.parametrize("num_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_after_kill_9_every_acknowledged_conversation_goes_on_exactly(tmp_path, num_kills):
    chosen = random.Random(0)
    told_before: dict[str, list[str]] = {}
    for number in range(num_kills):
        process = ServerProcess("--state-dir", tmp_path / "states")
        with process.client() as client:
            for response_id in chosen.sample(sorted(told_before), min(5, len(told_before))):
                texts = told_before[response_id]
                answer = respond(client, SECOND, previous_response_id=response_id, **OPTIONS)
                whole = respond(client, said(*texts, SECOND), **OPTIONS)
                assert text_of(answer) == text_of(whole)
                assert answer["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
                assert answer["usage"]["input_tokens_details"]["cached_tokens"] > 0
        told, threads = talk_until_killed(process, number)
        num_wanted = chosen.randint(5, 25)
        while len(told) < num_wanted:
            pass
        process.kill()
        for thread in threads:
            thread.join()
        told_before |= told
    assert len(told_before) > 5 * num_kills


def test_two_servers_on_one_directory_go_on_with_each_others_conversations_when_one_is_killed(tmp_path):
    killed, left = (ServerProcess("--state-dir", tmp_path) for _ in range(2))
    told = [talk_until_killed(process, number) for number, process in enumerate((killed, left))]
    while min(len(texts_by_id) for texts_by_id, _ in told) < 8:
        pass
    killed.kill()
    for thread in told[0][1]:
        thread.join()
    with left.client() as client:
        for response_id, texts in list(told[0][0].items())[-4:]:
            answer = respond(client, SECOND, previous_response_id=response_id, **OPTIONS)
            assert text_of(answer) == text_of(respond(client, said(*texts, SECOND), **OPTIONS))
    assert server_errors(left.logs) == []
    left.kill()
    for thread in told[1][1]:
        thread.join()


def test_a_conversation_whose_state_cannot_be_read_is_read_again_and_can_be_deleted(tmp_path):
    process = ServerProcess("--state-dir", tmp_path)
    with process.client() as client:
        first = respond(client, FIRST, temperature=0)
    assert process.stop() == 0
    for path in list((tmp_path / "records").iterdir()):
        path.unlink()
        # Reading one fails as it does from a broken disk.
        path.mkdir()
    process = ServerProcess("--state-dir", tmp_path)
    with process.client() as client:
        for _ in range(2):
            second = respond(client, SECOND, previous_response_id=first["id"], temperature=0)
            assert text_of(second) == text_of(respond(client, said(FIRST, text_of(first), SECOND), temperature=0))
        for response in (first, second):
            assert client.delete(f"/v1/responses/{response['id']}").status_code == 200
            assert client.get(f"/v1/responses/{response['id']}").status_code == 404
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def test_responses_of_an_adapter_that_is_no_longer_loaded_can_be_deleted(tmp_path):
    config = griffinlm.load("eyas").config
    write_adapter(tmp_path / "adapter", config, random_factors(config, 1, size=0.05))
    process = ServerProcess("--state-dir", tmp_path / "states", "--adapter", f"x={tmp_path / 'adapter'}")
    with process.client() as client:
        first = respond(client, FIRST, model="eyas:x")
    assert process.stop() == 0
    process = ServerProcess("--state-dir", tmp_path / "states")
    with process.client() as client:
        assert client.delete(f"/v1/responses/{first['id']}").status_code == 200
        assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def test_where_the_state_directory_was_removed_nothing_is_said_to_be_stored(tmp_path):
    process = ServerProcess("--state-dir", tmp_path / "states")
    with process.client() as client:
        before = respond(client, FIRST)
        # At once: the server may still write into it.
        (tmp_path / "states").rename(tmp_path / "elsewhere")
        body = {"model": "eyas", "input": SECOND, "max_output_tokens": 4, "previous_response_id": before["id"]}
        refused = client.post("/v1/responses", json=body)
        assert refused.status_code == 507
        assert "conversations.sqlite was removed" in refused.json()["error"]["message"]
        assert client.post("/v1/responses", json={**body, "store": False}).status_code == 200
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def resident_bytes(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_500_idle_connections_are_closed_while_others_are_served(server, client):
    idle = [connect(server, 90) for _ in range(500)]
    for connection in idle[:250]:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
    for _ in range(20):
        assert respond(client, FIRST)["status"]
    for connection in idle:
        assert connection.recv(10) == b"", "closed by the server"
        connection.close()


def ask_for_trouble(process, client, chosen):
    """One request that must be refused, or answered, and cost nothing that stays."""
    match chosen.randrange(6):
        case 0:
            form = {"type": "json_schema", "json_schema": {"schema": nested(chosen.randrange(2, 400))}}
            body = {"model": "eyas", "messages": said(FIRST), "max_tokens": 3, "response_format": form}
            assert client.post(CHAT, json=body).status_code in (200, 400)
        case 1:
            # The server closes before all is sent, which may cost the answer on its way.
            with connect(process) as connection, contextlib.suppress(ConnectionError):
                connection.sendall(request_bytes(CHAT, b"x" * (60 << 20)))
        case 2:
            assert client.post("/v1/states/upload", content=chosen.randbytes(1000)).status_code == 400
        case 3:
            path = chosen.choice(["..%2f..%2fetc%2fpasswd", "%00", "a" * 5000, "resp_%ff", "C:%5cnul"])
            assert client.get(f"/v1/responses/{path}").status_code in (400, 404)
        case _:
            content = chosen.choice([b"{", b"[" * 100_000, b'{"a":' * 1000, chosen.randbytes(200)])
            assert client.post(CHAT, content=content).status_code == 400


@pytest.mark.slow
def test_a_thousand_chats_with_disconnects_and_attacks_take_no_more_memory():
    process, chosen = ServerProcess("--memory-budget", "16MiB"), random.Random(1)

    def chats(client, num_chats):
        for _ in range(num_chats):
            messages = [{"role": "user", "content": f"{FIRST} {chosen.random()}"}]
            body = {"model": "eyas", "messages": messages, "max_tokens": chosen.randint(1, 12), "stream": True}
            if chosen.random() < 0.3:
                with connect(process) as connection:
                    connection.sendall(request_bytes(CHAT, body))
                    connection.recv(chosen.choice([1, 1000]))
            else:
                assert client.post(CHAT, json=body).status_code == 200
            if chosen.random() < 0.1:
                ask_for_trouble(process, client, chosen)

    with process.client() as client, contextlib.ExitStack() as stack:
        free = gauges(client)["free_slots"]
        for _ in range(500):
            stack.enter_context(connect(process))
        chats(client, 500)
        before = resident_bytes(process.pid)
        chats(client, 1000)
        assert resident_bytes(process.pid) <= before * 1.02
        until(lambda: is_idle(client))
        assert gauges(client)["free_slots"] == free
    assert process.stop() == 0
    assert server_errors(process.logs) == []
