"""Stored responses: gone on from by id, they say what the whole conversation sent anew says."""

import json

import pytest

from serve.test_chat_completions import events

FIRST, SECOND = "Who lives in the forest?", "And what does it eat?"


def respond(client, text, **fields):
    response = client.post("/v1/responses", json={"model": "eyas", "input": text, "max_output_tokens": 12, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(response):
    return response["output"][0]["content"][0]["text"]


def said(*texts):
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1, "seed": 3, "top_p": 0.9}])
def test_continued_by_id_is_the_conversation_sent_whole(client, options):
    first = respond(client, FIRST, **options)
    second = respond(client, SECOND, previous_response_id=first["id"], **options)
    third = respond(client, FIRST, previous_response_id=second["id"], **options)
    texts = [FIRST, text_of(first), SECOND, text_of(second), FIRST]
    whole = respond(client, said(*texts), **options)
    assert text_of(third) == text_of(whole)
    assert third["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert third["usage"]["input_tokens_details"]["cached_tokens"] > second["usage"]["input_tokens"]
    assert third["previous_response_id"] == second["id"]


def test_answers_cut_in_other_tokens_than_the_tokenizers_go_on_as_their_text_does(client):
    num_other = 0
    for seed in range(10):
        options = {"temperature": 1.5, "seed": seed}
        first = respond(client, FIRST, include=["message.output_text.logprobs"], **options)
        chosen = [bytes(one["bytes"]) for one in first["output"][0]["content"][0]["logprobs"]]
        ids = client.post("/tokenize", json={"prompt": text_of(first), "add_special_tokens": False}).json()["tokens"]
        num_other += len(chosen) != len(ids)
        second = respond(client, SECOND, previous_response_id=first["id"], **options)
        whole = respond(client, said(FIRST, text_of(first), SECOND), **options)
        assert text_of(second) == text_of(whole)
        assert second["usage"]["input_tokens"] == whole["usage"]["input_tokens"]
    assert num_other > 0, "the rule was not needed"


def test_branches_behind_one_response_do_not_meet(client):
    first = respond(client, FIRST, temperature=0)
    for question in (SECOND, "Why?", SECOND):
        answer = respond(client, question, previous_response_id=first["id"], temperature=0)
        assert text_of(answer) == text_of(respond(client, said(FIRST, text_of(first), question), temperature=0))


def test_instructions_hold_for_one_response_and_are_in_front_of_all(client):
    first = respond(client, FIRST, instructions="Be brief.", temperature=0)
    system = {"role": "system", "content": "Be brief."}
    assert text_of(first) == text_of(respond(client, [system, *said(FIRST)], temperature=0))
    kept = respond(client, SECOND, previous_response_id=first["id"], instructions="Be brief.", temperature=0)
    whole = respond(client, [system, *said(FIRST, text_of(first), SECOND)], temperature=0)
    assert text_of(kept) == text_of(whole)
    dropped = respond(client, SECOND, previous_response_id=first["id"], temperature=0)
    assert dropped["usage"]["input_tokens"] < kept["usage"]["input_tokens"]
    assert text_of(dropped) == text_of(respond(client, said(FIRST, text_of(first), SECOND), temperature=0))


def test_stream_is_the_response_in_order(client):
    whole = respond(client, FIRST, temperature=0, max_output_tokens=30)
    body = {"model": "eyas", "input": FIRST, "temperature": 0, "max_output_tokens": 30, "stream": True}
    found = events(client.post("/v1/responses", json=body))
    tables = [json.loads(data) for _, data in found]
    assert [name for name, _ in found] == [table["type"] for table in tables]
    assert [table["sequence_number"] for table in tables] == list(range(len(tables)))
    names = list(dict.fromkeys(name for name, _ in found))
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole['status']}",
    ]
    deltas = "".join(table["delta"] for table in tables if table["type"] == "response.output_text.delta")
    assert deltas == text_of(whole) == text_of(tables[-1]["response"])
    stored = client.get(f"/v1/responses/{tables[-1]['response']['id']}").json()
    assert stored == tables[-1]["response"]


def listed(client, response, **query):
    return client.get(f"/v1/responses/{response['id']}/input_items", params=query).json()


def test_input_items_are_the_conversation_in_front_of_the_answer(client):
    first = respond(client, said(FIRST, "Owls.", SECOND), instructions="Be brief.", max_output_tokens=4)
    second = respond(client, FIRST, previous_response_id=first["id"], max_output_tokens=4)
    items = listed(client, second, order="asc")["data"]
    assert [item["content"][0]["text"] for item in items] == [FIRST, "Owls.", SECOND, text_of(first), FIRST]
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant", "user"]
    assert items[3] == first["output"][0]
    assert items[:3] == listed(client, first, order="asc")["data"]
    assert len({item["id"] for item in items}) == 5


def test_pages_of_input_items_joined_are_all_of_them(client):
    response = respond(client, said("1", "2", "3", "4", "5"), max_output_tokens=2)
    whole = listed(client, response)
    assert [item["content"][0]["text"] for item in whole["data"]] == ["5", "4", "3", "2", "1"]
    assert not whole["has_more"]
    pages = [listed(client, response, limit=2)]
    while pages[-1]["has_more"]:
        pages.append(listed(client, response, limit=2, after=pages[-1]["last_id"]))
    assert [item for page in pages for item in page["data"]] == whole["data"]
    assert [len(page["data"]) for page in pages] == [2, 2, 1]
    assert pages[1]["first_id"] == whole["data"][2]["id"]


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("/input_items", {"limit": 0}, "limit"),
        ("/input_items", {"limit": 101}, "limit"),
        ("/input_items", {"order": "up"}, "order"),
        ("/input_items", {"after": "msg_1"}, "after"),
        ("/input_items", {"before": "msg_1"}, "before"),
        ("/input_items", {"include[]": "reasoning.encrypted_content"}, "include[].0"),
        ("", {"stream": "true"}, "stream"),
    ],
)
def test_faults_in_what_is_asked_of_a_stored_response_are_400_and_name_the_field(client, path, query, param):
    response = respond(client, FIRST, max_output_tokens=2)
    found = client.get(f"/v1/responses/{response['id']}{path}", params=query)
    assert found.status_code == 400, found.text
    assert found.json()["error"]["param"] == param


def test_what_is_over_cannot_be_cancelled(client):
    response = respond(client, FIRST, max_output_tokens=2)
    refused = client.post(f"/v1/responses/{response['id']}/cancel")
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert client.get(f"/v1/responses/{response['id']}").json() == response
    assert client.post("/v1/responses/resp_none/cancel").status_code == 404
    assert client.get("/v1/responses/resp_none/input_items").status_code == 404


def test_responses_that_are_not_stored_are_not_there(client):
    response = respond(client, FIRST, store=False)
    assert client.get(f"/v1/responses/{response['id']}").status_code == 404
    body = {"model": "eyas", "input": SECOND, "previous_response_id": response["id"]}
    assert client.post("/v1/responses", json=body).status_code == 404


def test_deleted_responses_are_gone_and_those_behind_them_go_on(client):
    first = respond(client, FIRST, temperature=0)
    second = respond(client, SECOND, previous_response_id=first["id"], temperature=0)
    assert client.delete(f"/v1/responses/{first['id']}").json()["deleted"] is True
    assert client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert client.delete(f"/v1/responses/{first['id']}").status_code == 404
    texts = [FIRST, text_of(first), SECOND, text_of(second), FIRST]
    third = respond(client, FIRST, previous_response_id=second["id"], temperature=0)
    assert text_of(third) == text_of(respond(client, said(*texts), temperature=0))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
    ],
)
def test_faults_are_400_and_name_the_field(client, fields, param):
    response = client.post("/v1/responses", json={"model": "eyas", "input": "x", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"].split(".")[0] == param
