"""States as things: made, copied, carried to another server, and never to another tenant or model."""

import json

import httpx
import pytest

from serve.server_process import ServerProcess, server_errors
from serve.test_responses import FIRST, SECOND, respond, said, text_of

KEYS = ["key-of-tenant-a", "key-of-tenant-b"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    (folder / "api").write_text("# tenants\n" + "\n".join(KEYS) + "\n")
    for name in ("state", "other"):
        (folder / name).write_text(name * 16)
    return folder


@pytest.fixture(scope="module")
def other_server(files):
    """Another process with API keys and a key for states."""
    process = ServerProcess("--api-key-file", files / "api", "--state-key-file", files / "state")
    yield process
    assert process.stop() == 0
    assert server_errors(process.logs) == []


@pytest.fixture(scope="module")
def third_server(files, tiny_model_directory):
    """The same key for states, another model."""
    process = ServerProcess("--state-key-file", files / "state", model=tiny_model_directory)
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="module")
def same_key_server(files, tmp_path_factory):
    process = ServerProcess("--state-key-file", files / "state", "--state-dir", tmp_path_factory.mktemp("states"))
    yield process
    assert process.stop() == 0
    assert server_errors(process.logs) == []


def test_a_state_made_of_messages_is_gone_on_from_as_from_a_response(client):
    messages = said(FIRST, "A fox.")
    state = client.post("/v1/states", json={"model": "eyas", "messages": messages}).json()
    assert state["num_tokens"] > 5
    assert client.get(f"/v1/states/{state['id']}").json()["messages"] == messages
    answer = respond(client, SECOND, previous_response_id=state["id"], temperature=0)
    assert text_of(answer) == text_of(respond(client, [*messages, *said(SECOND)], temperature=0))
    assert answer["usage"]["input_tokens_details"]["cached_tokens"] >= state["num_tokens"] - 1


def test_a_state_behind_a_question_is_gone_on_from_too(client):
    state = client.post("/v1/states", json={"model": "eyas", "messages": said(FIRST)}).json()
    answer = respond(client, said("", "A fox.", SECOND)[1:], previous_response_id=state["id"], temperature=0)
    assert text_of(answer) == text_of(respond(client, said(FIRST, "A fox.", SECOND), temperature=0))


def test_a_system_message_of_a_state_is_in_front_of_all_that_goes_on_from_it(client):
    messages = [{"role": "system", "content": "Be brief."}, *said(FIRST, "A fox.")]
    state = client.post("/v1/states", json={"model": "eyas", "messages": messages}).json()
    assert client.get(f"/v1/states/{state['id']}").json()["messages"] == messages
    second = respond(client, SECOND, previous_response_id=state["id"], temperature=0)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= state["num_tokens"] - 1
    third = respond(client, FIRST, previous_response_id=second["id"], temperature=0)
    whole = respond(client, [*messages, *said(SECOND, text_of(second), FIRST)], temperature=0)
    assert text_of(third) == text_of(whole)
    assert third["usage"]["input_tokens"] == whole["usage"]["input_tokens"]


def test_what_goes_on_from_a_response_that_is_deleted_meanwhile_keeps_its_beginning(client):
    first = respond(client, FIRST, temperature=0)
    schema = {"type": "array", "minItems": 200, "items": {"type": "integer"}}
    body = {"model": "eyas", "input": SECOND, "previous_response_id": first["id"], "max_output_tokens": 300}
    body |= {"stream": True, "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}}
    with client.stream("POST", "/v1/responses", json=body) as stream:
        lines = stream.iter_lines()
        while not (line := next(lines)).startswith("data: "):
            pass
        second_id = json.loads(line[6:])["response"]["id"]
        with httpx.Client(base_url=client.base_url, headers=client.headers) as other:
            assert other.delete(f"/v1/responses/{first['id']}").status_code == 200
        for line in lines:
            assert "event: error" not in line
    assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    told = client.get(f"/v1/states/{second_id}").json()["messages"]
    assert told[:3] == said(FIRST, text_of(first), SECOND)
    respond(client, FIRST, previous_response_id=second_id, instructions="Be brief.")


def test_forks_stay_when_what_they_were_forked_from_is_deleted(client):
    first = respond(client, FIRST, temperature=0)
    fork = client.post(f"/v1/states/{first['id']}/fork", json={}).json()
    further = client.post(f"/v1/states/{first['id']}/fork", json={"messages": said(SECOND, "Mice.")}).json()
    assert client.delete(f"/v1/states/{first['id']}").status_code == 200
    whole = respond(client, said(FIRST, text_of(first), SECOND), temperature=0)
    assert text_of(respond(client, SECOND, previous_response_id=fork["id"], temperature=0)) == text_of(whole)
    texts = [FIRST, text_of(first), SECOND, "Mice.", FIRST]
    answer = respond(client, FIRST, previous_response_id=further["id"], temperature=0)
    assert text_of(answer) == text_of(respond(client, said(*texts), temperature=0))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1, "seed": 11}])
def test_a_conversation_carried_to_a_server_with_the_same_key_goes_on_exactly(other_server, same_key_server, options):
    with other_server.client(KEYS[0]) as here, same_key_server.client() as there:
        first = respond(here, FIRST, **options)
        second = respond(here, SECOND, previous_response_id=first["id"], **options)
        data = here.get(f"/v1/states/{second['id']}/download").content
        moved = there.post("/v1/states/upload", content=data, headers={"content-type": "application/octet-stream"})
        assert second["id"] in [one["id"] for one in moved.json()["data"]]
        answers = [respond(c, FIRST, previous_response_id=second["id"], **options) for c in (here, there)]
        assert text_of(answers[0]) == text_of(answers[1])
        assert answers[1]["usage"]["input_tokens_details"]["cached_tokens"] > first["usage"]["input_tokens"]
        again = there.post("/v1/states/upload", content=data).json()
        assert again == moved.json()


def test_tampered_cut_and_foreign_bytes_are_400_and_never_loaded(other_server, same_key_server, third_server, server):
    with other_server.client(KEYS[0]) as here, same_key_server.client() as there:
        first = respond(here, FIRST)
        data = here.get(f"/v1/states/{first['id']}/download").content
        places = [30, 60, len(data) // 2, len(data) - 1]
        changed = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places]
        for wrong in [*changed, data[:-1], data + b"x", b"", b"x", data[:60]]:
            response = there.post("/v1/states/upload", content=wrong)
            assert response.status_code == 400, response.text
            assert response.json()["error"]["code"] == "invalid_state"
        assert there.get(f"/v1/responses/{first['id']}").status_code == 404
        with third_server.client() as other_model, server.client() as other_key:
            for client, words in ((other_model, "another model"), (other_key, "the key is another")):
                response = client.post("/v1/states/upload", content=data)
                assert response.status_code == 400
                assert words in response.json()["error"]["message"]
                assert client.get("/v1/states").text.find(first["id"]) == -1


def test_another_tenants_ids_are_404_everywhere(other_server):
    with other_server.client(KEYS[0]) as owner, other_server.client(KEYS[1]) as other:
        first = respond(owner, FIRST)
        for method, path, body in [
            ("GET", f"/v1/responses/{first['id']}", None),
            ("DELETE", f"/v1/responses/{first['id']}", None),
            ("GET", f"/v1/states/{first['id']}", None),
            ("DELETE", f"/v1/states/{first['id']}", None),
            ("POST", f"/v1/states/{first['id']}/fork", {}),
            ("GET", f"/v1/states/{first['id']}/download", None),
            ("POST", "/v1/states/download", {"ids": [first["id"]]}),
            ("POST", "/v1/responses", {"model": "eyas", "input": "x", "previous_response_id": first["id"]}),
        ]:
            response = other.request(method, path, json=body)
            assert response.status_code == 404, (method, path, response.text)
        assert first["id"] not in other.get("/v1/states").text
        assert first["id"] in owner.get("/v1/states").text


def test_nothing_a_tenant_said_is_a_prefix_for_another(other_server):
    with other_server.client(KEYS[0]) as owner, other_server.client(KEYS[1]) as other:
        question = "Something that nobody else has ever asked before?"
        respond(owner, question)
        again, fresh = respond(owner, question), respond(other, question)
        assert again["usage"]["input_tokens_details"]["cached_tokens"] > 0
        assert fresh["usage"]["input_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a" * 5000, "%00", "resp_'; DROP TABLE records; --", "💥"]
)
def test_odd_names_are_not_there(client, name):
    for path in (f"/v1/states/{name}", f"/v1/responses/{name}", f"/v1/states/{name}/download", f"/{name}"):
        response = client.get(path)
        assert response.status_code == 404, path
        assert response.json()["error"]["type"] == "invalid_request_error"
