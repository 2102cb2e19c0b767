"""Killed at any moment, a server comes back with every conversation that it had acknowledged."""

import os
import random
import threading

import httpx
import pytest

from serve.raw import connect, request_bytes
from serve.server_process import ServerProcess, server_errors
from serve.test_responses import FIRST, SECOND, respond, said, text_of

OPTIONS = {"temperature": 0.8, "seed": 5}


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


@pytest.mark.slow
def test_a_thousand_chats_with_disconnects_take_no_more_memory():
    process, chosen = ServerProcess("--memory-budget", "16MiB"), random.Random(1)

    def chats(client, num_chats):
        for _ in range(num_chats):
            messages = [{"role": "user", "content": f"{FIRST} {chosen.random()}"}]
            body = {"model": "eyas", "messages": messages, "max_tokens": chosen.randint(1, 12), "stream": True}
            if chosen.random() < 0.3:
                with connect(process) as connection:
                    connection.sendall(request_bytes("/v1/chat/completions", body))
                    connection.recv(chosen.choice([1, 1000]))
            else:
                assert client.post("/v1/chat/completions", json=body).status_code == 200

    with process.client() as client:
        chats(client, 500)
        before = resident_bytes(process.pid)
        chats(client, 1000)
        assert resident_bytes(process.pid) <= before * 1.02
    assert process.stop() == 0
    assert server_errors(process.logs) == []
