"""Machines that share an object store go on with each other's conversations; only the object says what exists."""

from pathlib import Path

import pytest

import griffinlm
from griffinlm.cli.main import main
from griffinlm.generation.store import StateStore, StoreError
from griffinlm.serve.errors import ApiError
from griffinlm.serve.shared_records import SharedRecords
from serve.server_process import ServerProcess, server_errors
from serve.test_records import record
from serve.test_responses import FIRST, SECOND, respond, said, text_of

OPTIONS = {"temperature": 0.8, "seed": 5}


@pytest.fixture(scope="module")
def objects(tmp_path_factory) -> Path:
    """The folder of the object store."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture(scope="module")
def machines(objects, tmp_path_factory):
    """Two servers with nothing in common but an object store and a key; the second keeps its own copies on disk."""
    folder = tmp_path_factory.mktemp("machines")
    (folder / "key").write_text("k" * 64)
    shared = ("--state-url", f"file://{objects}", "--state-key-file", folder / "key")
    processes = [ServerProcess(*shared), ServerProcess(*shared, "--state-dir", folder / "states")]
    with processes[0].client() as one, processes[1].client() as other:
        yield one, other
    for process in processes:
        assert process.stop() == 0
        assert server_errors(process.logs) == []


def test_a_conversation_begun_on_one_machine_goes_on_at_the_other_with_the_same_tokens(machines):
    one, other = machines
    first = respond(one, FIRST, **OPTIONS)
    second = respond(other, SECOND, previous_response_id=first["id"], **OPTIONS)
    third = respond(one, FIRST, previous_response_id=second["id"], **OPTIONS)
    whole = respond(one, said(FIRST, text_of(first), SECOND, text_of(second), FIRST), **OPTIONS)
    assert text_of(third) == text_of(whole)
    for answer in (second, third):
        assert answer["usage"]["input_tokens_details"]["cached_tokens"] > 0, "it was read from the beginning again"
    for client in machines:
        assert client.get(f"/v1/responses/{second['id']}").json() == second
        items = client.get(f"/v1/responses/{third['id']}/input_items").json()["data"]
        assert len(items) == 5


def test_what_one_machine_deletes_is_gone_on_the_other_and_what_follows_it_is_not(machines):
    one, other = machines
    first = respond(one, FIRST, **OPTIONS)
    second = respond(other, SECOND, previous_response_id=first["id"], **OPTIONS)
    assert other.delete(f"/v1/responses/{first['id']}").status_code == 200
    for client in machines:
        assert client.get(f"/v1/responses/{first['id']}").status_code == 404
        body = {"model": "eyas", "input": SECOND, "previous_response_id": first["id"]}
        assert client.post("/v1/responses", json=body).status_code == 404
        listed = {state["id"] for state in client.get("/v1/states").json()["data"]}
        assert second["id"] in listed
        assert first["id"] not in listed
    third = respond(one, FIRST, previous_response_id=second["id"], **OPTIONS)
    whole = respond(one, said(FIRST, text_of(first), SECOND, text_of(second), FIRST), **OPTIONS)
    assert text_of(third) == text_of(whole)


def test_states_and_forks_are_shared_as_responses_are(machines):
    one, other = machines
    state = one.post("/v1/states", json={"model": "eyas", "messages": said(FIRST)}).json()
    fork = other.post(f"/v1/states/{state['id']}/fork", json={}).json()
    found = one.get(f"/v1/states/{fork['id']}").json()
    assert found["messages"] == said(FIRST)


def test_an_object_that_was_changed_is_refused(machines, objects):
    one, other = machines
    # The object of a response may be written once more, when its end has been read.
    state_id = one.post("/v1/states", json={"model": "eyas", "messages": said(FIRST)}).json()["id"]
    (place,) = objects.glob(f"*/{state_id}")
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(content)
    refused = other.get(f"/v1/states/{state_id}")
    assert refused.status_code == 507
    assert "signature" in refused.json()["error"]["message"]
    place.unlink()


@pytest.mark.parametrize("path", ["..%2f..%2fkey", "%2e%2e", "a" * 200, "resp_%ff", ""])
def test_ids_that_no_object_can_have_are_not_found(machines, path):
    for client in machines:
        assert client.get(f"/v1/states/{path}x").status_code == 404


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--state-url", "file:///tmp/x"], "needs --state-key-file"),
        (["--state-url", "nowhere://x", "--state-key-file", "key"], "the object store nowhere://x cannot be used"),
        (["--state-url", "file:///proc/nothing", "--state-key-file", "key"], "the object store file:///proc/nothing"),
    ],
)
def test_an_object_store_that_cannot_be_used_is_one_line_and_exit_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("k" * 64)
    assert main(["serve", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def tiny_model(tiny_model_directory):
    return griffinlm.load(tiny_model_directory)


@pytest.fixture
def pair(tiny_model, tmp_path):
    """The records of two machines that share a folder."""
    stores = [StateStore(tiny_model, None, memory_bytes=1 << 24) for _ in range(2)]
    pair = [SharedRecords(None, store, tiny_model, f"file://{tmp_path}", b"k" * 32, 1 << 26) for store in stores]
    yield pair
    for one in (*pair, *stores):
        one.close()


def put_with_state(records, model, number):
    """A record and its state, both there."""
    token_ids = [model.tokenizer.bos_id, *model.tokenizer.encode(f"hello {number}")]
    state_id = records._store.put("t", token_ids, model.read(f"hello {number}").arrays())
    records.put("t", [record(number, state_id=state_id, kept_ids=[state_id])])


def listed(records):
    return [heading.id for heading in records.newest("t", 10)]


def test_a_list_brings_headings_alone_and_what_is_asked_for_then_comes_whole(pair, tiny_model):
    one, other = pair
    for number in range(3):
        put_with_state(one, tiny_model, number)
    assert other.newest("t", 10) == one.newest("t", 10)
    assert other._store.counts().num_states == 0
    found = other.get("t", "resp_1")
    assert found.messages == record(1).messages
    assert other._store.ids("t") == [found.state_id]
    assert listed(other) == ["resp_2", "resp_1", "resp_0"]


@pytest.mark.parametrize("place", [10, -10], ids=["heading", "content"])
def test_a_damaged_object_hides_no_other_and_can_be_deleted(pair, tmp_path, place):
    one, other = pair
    one.put("t", [record(number) for number in range(3)])
    (path,) = tmp_path.glob("*/resp_1")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert {"resp_0", "resp_2"} <= set(listed(other))
    if place < 0:
        with pytest.raises(StoreError, match="resp_1 cannot be used: the signature"):
            other.get("t", "resp_1")
    other.delete("t", "resp_1")
    assert listed(other) == listed(one) == ["resp_2", "resp_0"]


def test_a_heading_in_front_of_another_object_is_passed_over(pair, tmp_path):
    one, other = pair
    one.put("t", [record(1)])
    (path,) = tmp_path.glob("*/resp_1")
    (path.parent / "resp_2").write_bytes(path.read_bytes())
    assert listed(other) == ["resp_1"]


def test_what_another_machine_deletes_while_its_object_is_packed_is_not_brought_back(pair, monkeypatch):
    one, other = pair
    one.put("t", [record(1, state_id="a", kept_ids=["a"])])
    path_of = one.path

    def deleted_meanwhile(tenant, moved):
        other.delete(tenant, moved.id)
        return path_of(tenant, moved)

    monkeypatch.setattr(one, "path", deleted_meanwhile)
    with pytest.raises(ApiError):
        one.move("t", "resp_1", "b", ["b"])
    assert one.unused("t", ["a", "b"]) == ["a", "b"]
    for records in pair:
        with pytest.raises(ApiError):
            records.get("t", "resp_1")
