"""On Ray Serve, any replica goes on with any conversation, whichever replica began it and however that one ended."""

import itertools
import os
import signal
import threading

import httpx
import pytest

from griffinlm.cli.main import main
from serve.server_process import ServerProcess
from serve.test_responses import FIRST, SECOND, respond, text_of

ray = pytest.importorskip("ray")
from griffinlm.serve.errors import ServeError  # noqa: E402
from griffinlm.serve.ray_serve import Cluster, parse_replicas  # noqa: E402

OPTIONS = {"temperature": 0.8, "seed": 5}
NUM_KILLS = 10
NUM_TRIES = 60
PATIENT = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_health_check_timeout_ms": "300000",
    "RAY_worker_niceness": "0",
}
"""Ray gives up what is slow and lets its processes wait for others; a busy machine is slow, and others never end."""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--replicas", "2"], "are options of --ray"),
        (["--requests-per-replica", "2"], "are options of --ray"),
        (["--ray-address", "auto"], "are options of --ray"),
        (["--ray", "--replicas", "many"], "replicas is 'many'; it must be a number such as 2, or a range such as 1-8"),
        (["--ray", "--replicas", "0"], "replicas is 0-0"),
        (["--ray", "--replicas", "3-2"], "replicas is 3-2"),
        (["--ray", "--requests-per-replica", "0"], "requests_per_replica is 0"),
        (["--ray", "--replicas", "1-2"], "2 replicas need a place"),
        (["--ray", "--model", "none"], "there is no model"),
        (["--ray", "--api-key-file", "none"], "none, the file of API keys, cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_cluster_is_started(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a cluster was started"))
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.mark.parametrize(("text", "expected"), [("2", (2, 2)), ("1-8", (1, 8)), (" 3 ", (3, 3))])
def test_replicas_are_a_number_or_a_range(text, expected):
    assert parse_replicas(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "1-", "1-2-3", "1.5", "²"])
def test_other_words_are_no_number_of_replicas(text):
    with pytest.raises(ServeError, match="replicas is"):
        Cluster(None, *parse_replicas(text))


def start(monkeypatch, *arguments):
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    return ServerProcess("--ray", *arguments)


def kill(replica):
    """SIGKILL, which no process notices; replicas are called by machine and process."""
    os.kill(int(replica.rpartition("-")[2]), signal.SIGKILL)


def asked(client, text, **fields):
    """An answer and the replica that gave it. A request that met a dying replica is asked again, as clients do."""
    body = {"model": "eyas", "input": text, "max_output_tokens": 12, **OPTIONS, **fields}
    for _ in range(NUM_TRIES):
        try:
            response = client.post("/v1/responses", json=body)
        except httpx.HTTPError:
            continue
        if response.status_code == 200:
            return response.json(), response.headers["x-griffin-replica"]
        assert response.status_code >= 500, response.text
    pytest.fail(f"no replica answered in {NUM_TRIES} tries; the last: {response.text}")


def talk(process, told, is_over):
    """Conversations that go on until the end is told; all that was acknowledged of them, by id."""
    with process.client() as client:
        last = {}
        for number in itertools.count():
            if is_over.is_set():
                return
            answer, _ = asked(client, f"{FIRST} {number}", **last)
            told[answer["id"]] = answer
            last = {"previous_response_id": answer["id"]}


@pytest.mark.slow
def test_a_conversation_goes_on_at_the_other_replica_through_ten_kills_in_a_row(client, tmp_path, monkeypatch):
    process = start(monkeypatch, "--replicas", "2", "--state-dir", tmp_path / "states")
    told, is_over = {}, threading.Event()
    others = threading.Thread(target=talk, args=(process, told, is_over))
    with process.client() as on_ray:
        answer, replica = asked(on_ray, FIRST)
        expected = respond(client, FIRST, **OPTIONS)
        others.start()
        for _ in range(NUM_KILLS):
            assert text_of(answer) == text_of(expected)
            told[answer["id"]] = answer
            kill(replica)
            before = replica
            answer, replica = asked(on_ray, SECOND, previous_response_id=answer["id"])
            expected = respond(client, SECOND, previous_response_id=expected["id"], **OPTIONS)
            assert replica != before
            assert answer["usage"]["input_tokens"] == expected["usage"]["input_tokens"]
            assert answer["usage"]["input_tokens_details"]["cached_tokens"] > 0, "it was read from the beginning again"
        is_over.set()
        others.join()
        assert text_of(answer) == text_of(expected)
        assert len(told) > NUM_KILLS
        for response_id, body in told.items():
            assert on_ray.get(f"/v1/responses/{response_id}").json() == body
    assert process.stop() == 0


@pytest.mark.slow
def test_replicas_come_and_go_with_the_requests_that_are_open(tmp_path, monkeypatch):
    process = start(monkeypatch, "--replicas", "1-2", "--requests-per-replica", "1", "--state-dir", tmp_path / "states")
    found: set[str] = set()

    def ask(number):
        with process.client() as client:
            while len(found) < 2:
                found.add(asked(client, f"{FIRST} {number}", max_output_tokens=60)[1])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert process.stop() == 0
