"""What comes from outside, well-meant or not: nothing fails, nothing leaks, nobody else waits."""

import json
import random
import re
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serve.raw import connect, read_all, request_bytes, send_all, status_of
from serve.server_process import ServerProcess, server_errors

QUESTION = [{"role": "user", "content": "Tell me a story."}]
CHAT = "/v1/chat/completions"
LONG = {"model": "eyas", "messages": QUESTION, "stream": True, "max_tokens": 20000, "temperature": 1}
ROUTES = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/v1/states")
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def endless(client):
    """A request whose answer does not end by itself."""
    names = client.post("/detokenize", json={"tokens": []})
    assert names.status_code == 200
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 100000}
    form = {"type": "json_schema", "json_schema": {"name": "long", "schema": schema}}
    return {**LONG, "response_format": form}


def user(text):
    return {"role": "user", "content": text}


def gauges(client):
    text = client.get("/metrics").text
    return {name: float(value) for name, value in re.findall(r"^griffinlm_(\w+) (\S+)$", text, re.MULTILINE)}


def until(condition):
    """Asks until a condition holds; the test's own time limit ends the wait."""
    while not condition():
        pass


def is_idle(client):
    found = gauges(client)
    return found["running_answers"] == found["waiting_answers"] == found["aside_bytes"] == 0


def first_text(lines):
    """Reads a stream until its first text."""
    for line in lines:
        if '"content"' in line and '"content":""' not in line:
            return


def test_work_stops_when_the_client_leaves(client, endless):
    before = gauges(client)
    for stream in (True, False):
        for _ in range(3):
            connection = connect(client_server(client))
            connection.sendall(request_bytes(CHAT, {**endless, "stream": stream}))
            until(lambda: gauges(client)["running_answers"] > 0)
            connection.close()
            until(lambda: is_idle(client))
    assert gauges(client)["free_slots"] == before["free_slots"]


def client_server(client):
    class Address:
        port = client.base_url.port

    return Address


def test_a_reader_that_takes_nothing_stalls_nobody(client, endless, server):
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    slow.sendall(request_bytes(CHAT, endless))
    until(lambda: gauges(client)["running_answers"] > 0)
    answer = client.post(CHAT, json={"model": "eyas", "messages": QUESTION, "max_tokens": 10})
    assert answer.status_code == 200
    slow.close()
    until(lambda: is_idle(client))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"model": "eyas", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1, "x": "\\udfff"}',
        b'{"model": NaN}',
        b'{"model": "eyas", "seed": 1' + b"0" * 6000 + b"}",
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
)
@pytest.mark.parametrize(
    "path", [CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/v1/states"]
)
def test_malformed_bodies_are_400(client, path, body):
    response = client.post(path, content=body, headers=JSON)
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_lone_surrogates_are_taken_as_unknown_characters(client):
    body = b'{"model": "eyas", "messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}'
    response = client.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 200
    stored = (
        b'{"model": "eyas", "input": "\\ud800", "user": "\\udc00", "instructions": "\\ud800", "max_output_tokens": 2}'
    )
    response = client.post("/v1/responses", content=stored, headers=JSON)
    assert response.status_code == 200
    assert client.get(f"/v1/responses/{response.json()['id']}").status_code == 200
    assert client.get(f"/v1/states/{response.json()['id']}/download").status_code == 200


def nested(num_levels):
    schema = {"type": "integer"}
    for _ in range(num_levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(400),
        {"type": "string", "pattern": "(a|a)*" * 50},
        {"type": "array", "minItems": 10**12},
        {"$ref": "#"},
        {"$ref": "http://example.com/schema"},
        {"enum": ["x" * 70_000]},
        {"allOf": [{"type": "string", "pattern": f"a{{{n},}}"} for n in range(1, 30)]},
        {"type": "object", "properties": {str(n): {"type": "integer"} for n in range(5000)}},
    ],
)
def test_hostile_schemas_are_answered(client, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = client.post(CHAT, json={"model": "eyas", "messages": QUESTION, "max_tokens": 3, "response_format": form})
    assert response.status_code in (200, 400), response.text


def test_bodies_past_the_limit_are_413_whether_told_or_not(client, server):
    content = b'{"model": "' + b"x" * (60 << 20) + b'"}'
    assert client.post(CHAT, content=content).status_code == 413
    assert client.post(CHAT, content=iter([content[:1000], content[1000:]])).status_code == 413
    with connect(server) as connection:
        connection.sendall(request_bytes(CHAT, b"", ["expect: 100-continue"]).replace(b": 0\r\n", b": 99999999\r\n"))
        assert status_of(connection) == 413


def test_texts_past_the_limit_are_400_and_long_ones_stall_nobody(client):
    for body in ({"prompt": "x" * ((1 << 20) + 1)}, {"messages": [{"role": "user", "content": "x" * (1 << 18)}] * 5}):
        response = client.post("/tokenize", json=body)
        assert response.status_code == 400
        assert "at most 1048576" in response.json()["error"]["message"]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, "/tokenize", json={"prompt": "x " * (1 << 18)})
        num_others = 0
        while not long.done():
            num_others += client.get("/health").status_code == 200
    assert long.result().status_code == 200
    assert num_others > 5, "the server was held up"


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server, client, data):
    with connect(server) as connection:
        send_all(connection, data)
        answer = read_all(connection)
    assert answer[9:12] in (b"", b"400", b"403", b"404", b"405", b"413", b"431", b"505")
    assert client.get("/health").status_code == 200


def test_versions_of_http_that_there_are_not_are_505(server):
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/9.9\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert status_of(connection) == 505


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::2]"])
def test_names_looked_up_as_this_machine_are_forbidden(client, host):
    assert client.get("/health", headers={"host": host}).status_code in (400, 403)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://localhost", "file://"])
def test_pages_of_other_sites_are_forbidden(client, origin):
    for method, path in (("GET", "/v1/models"), ("POST", CHAT), ("GET", "/")):
        assert client.request(method, path, headers={"origin": origin}).status_code == 403
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"origin": own}).status_code == 200


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("first-secret-key\n\n# nobody's\nsecond-secret-key\n")
    process = ServerProcess("--api-key-file", path, "--max-waiting", "2", "--memory-budget", "5MB")
    yield process
    assert process.stop() == 0
    assert server_errors(process.logs) == []
    logged = "".join(process.lines)
    assert "secret" not in logged
    assert "story" not in logged


class TestKeys:
    @pytest.mark.parametrize(
        "header", [None, "Bearer x", "Bearer first-secret-ke", "Basic first-secret-key", "Bearer", "💥"]
    )
    def test_without_a_valid_key_all_but_the_page_and_health_is_401(self, keyed, header):
        headers = {} if header is None else {"authorization": header.encode()}
        with keyed.client() as client:
            paths = client.get("/openapi.json", headers={"authorization": "Bearer first-secret-key"}).json()["paths"]
            for path, methods in {**paths, "/openapi.json": {"get": {}}, "/nothing": {"get": {}}}.items():
                for method in methods:
                    expected = 200 if path in ("/health", "/ready") else 401
                    response = client.request(method, path, headers=headers)
                    assert response.status_code == expected, path
            assert client.get("/", headers=headers).status_code == 200
            assert client.get("/app.js", headers=headers).status_code == 200

    def test_a_valid_key_is_let_in(self, keyed):
        for key in ("first-secret-key", "second-secret-key"):
            with keyed.client(key) as client:
                assert client.get("/v1/models").status_code == 200

    def test_a_full_queue_is_429_with_the_time_to_wait_and_clients_try_again(self, keyed, endless):
        openai = pytest.importorskip("openai")
        with keyed.client("first-secret-key") as client, keyed.client("second-secret-key") as other:
            with ThreadPoolExecutor(16) as pool:
                leave = threading.Event()

                def hold():
                    with client.stream("POST", CHAT, json=endless) as response:
                        if response.status_code == 200:
                            leave.wait()
                        return response.status_code

                waiting = [pool.submit(hold) for _ in range(16)]
                until(lambda: sum(one.done() for one in waiting) > 0)
                refused = next(one for one in waiting if one.done())
                assert refused.result() == 429
                response = client.post(CHAT, json=endless)
                assert response.status_code == 429
                assert int(response.headers["retry-after"]) >= 1
                assert response.json()["error"]["type"] == "rate_limit_error"
                sdk = openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="second-secret-key", max_retries=0)
                served = pool.submit(other.post, CHAT, json={"model": "eyas", "messages": QUESTION, "max_tokens": 2})
                leave.set()
                assert served.result().status_code in (200, 429)
            sdk = sdk.with_options(max_retries=5)
            answer = sdk.chat.completions.create(model="eyas", messages=QUESTION, max_tokens=2)
            assert answer.choices[0].finish_reason


def test_where_no_state_has_room_conversations_are_read_again(keyed):
    def say(**fields):
        body = {"model": "eyas", "max_output_tokens": 8, "temperature": 0, **fields}
        return client.post("/v1/responses", json=body).json()

    with keyed.client("first-secret-key") as client:
        first = say(input="Who are you?")
        for number in range(10):
            say(input=f"Something else {number} " + "that takes room " * 40)
        text = first["output"][0]["content"][0]["text"]
        by_id = say(input="Why?", previous_response_id=first["id"])
        whole = say(input=[user("Who are you?"), {"role": "assistant", "content": text}, user("Why?")])
        assert by_id["output"][0]["content"] == whole["output"][0]["content"]
        assert by_id["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_sigterm_finishes_what_runs_refuses_what_comes_and_exits_0():
    process = ServerProcess("--drain-seconds", "60")
    body = {"model": "eyas", "messages": QUESTION, "max_tokens": 400, "stream": True, "response_format": None}
    schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 150, "maxItems": 150}
    body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with process.client() as client, client.stream("POST", CHAT, json=body) as response:
        lines = response.iter_lines()
        first_text(lines)
        process.signal(signal.SIGTERM)
        with process.client() as other:
            until(lambda: is_refused(other))
            rest = list(lines)
    assert rest[-2] == "data: [DONE]"
    assert process.wait() == 0
    assert server_errors(process.logs) == []
    assert any(line.get("status") == 503 for line in process.logs)


def test_sigterm_ends_long_answers_with_what_they_have_and_they_go_on_later(endless, tmp_path):
    arguments = ("--drain-seconds", "0", "--state-dir", tmp_path)
    process = ServerProcess(*arguments)
    form = {
        "format": {"type": "json_schema", "name": "x", "schema": endless["response_format"]["json_schema"]["schema"]}
    }
    body = {"model": "eyas", "input": "Count.", "max_output_tokens": 20000, "stream": True, "text": form}
    with process.client() as client, client.stream("POST", "/v1/responses", json=body) as response:
        lines = response.iter_lines()
        next(line for line in lines if "output_text.delta" in line)
        process.signal(signal.SIGTERM)
        last = json.loads([line for line in lines if line.startswith("data: ")][-1][6:])
    assert process.wait() == 0
    assert server_errors(process.logs) == []
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "deadline"}
    again = ServerProcess(*arguments)
    with again.client() as client:
        told = client.get(f"/v1/responses/{last['response']['id']}").json()
        assert told == last["response"]
        options = {"model": "eyas", "max_output_tokens": 5, "temperature": 0}
        said = told["output"][0]["content"][0]["text"]
        messages = [("user", "Count."), ("assistant", said), ("user", "Go on.")]
        whole = [{"role": role, "content": content} for role, content in messages]
        answers = [
            client.post("/v1/responses", json={**options, **fields}).json()["output"][0]["content"][0]["text"]
            for fields in ({"input": "Go on.", "previous_response_id": told["id"]}, {"input": whole})
        ]
    assert answers[0] == answers[1]
    assert again.stop() == 0


def is_refused(client):
    try:
        response = client.post("/tokenize", json={"prompt": "x"})
    except httpx.ConnectError:
        return True
    assert response.status_code in (200, 503)
    return response.status_code == 503


def test_random_clients_leave_no_slot_taken_and_no_fault(client, server):
    random_number = random.Random(0)

    def visit(seed):
        mine = random.Random(seed)
        body = {"model": "eyas", "messages": QUESTION, "max_tokens": mine.randint(1, 30), "stream": mine.random() < 0.7}
        data = request_bytes(CHAT, body)
        match mine.randrange(5):
            case 0:
                data = data[: mine.randrange(len(data))]
            case 1:
                data = bytes(mine.randrange(256) for _ in range(mine.randrange(200)))
        connection = connect(server, mine.choice([0.05, 0.5]))
        try:
            connection.sendall(data)
            if mine.random() < 0.6:
                connection.recv(mine.choice([1, 500, 100_000]))
            if mine.random() < 0.3:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(visit, [random_number.random() for _ in range(120)]))
    until(lambda: is_idle(client))
    assert server_errors(server.logs) == []
    assert client.post(CHAT, json={"model": "eyas", "messages": QUESTION, "max_tokens": 3}).status_code == 200


def test_logs_are_json_without_what_was_said(server, client):
    client.post(CHAT, json={"model": "eyas", "messages": [{"role": "user", "content": "xyzzy-said"}], "max_tokens": 3})
    client.get("/xyzzy-path")
    assert all(isinstance(line, dict) for line in server.logs)
    assert "xyzzy" not in json.dumps(server.logs)
