"""Bodies made to cost more than they seem, or to be two."""

import pytest
from pydantic import ValidationError

from griffinlm.serve.app import FAMILIES
from serve.raw import connect, read_all

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "Tell me a story."}]
MANY = 200_000
"""Faults in one body; telling of each would take seconds, in which nobody else is served."""


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": [0] * MANY}]}),
        (CHAT, {"messages": [{"role": "user", "content": [0] * 100}] * 5000}),
        (CHAT, {"messages": [{"role": "user", "content": "x", **dict.fromkeys(map(str, range(MANY)))}]}),
        (CHAT, {"messages": QUESTION, "metadata": dict.fromkeys(map(str, range(MANY)))}),
        (CHAT, {"messages": QUESTION, "logit_bias": dict.fromkeys(map(str, range(MANY)))}),
        (CHAT, {"messages": QUESTION, "modalities": [0] * MANY}),
        (CHAT, {"messages": QUESTION, **dict.fromkeys(map(str, range(MANY)))}),
        ("/v1/completions", {"prompt": [None] * MANY}),
        ("/v1/completions", {"prompt": [[None] * 100] * 2000}),
        ("/v1/embeddings", {"input": [[]] * MANY}),
        ("/v1/responses", {"input": [{"role": "user", "content": [0] * 100}] * 5000}),
        ("/v1/responses", {"input": "x", "include": [0] * MANY}),
        ("/detokenize", {"tokens": [None] * MANY}),
        ("/v1/states/download", {"ids": [None] * 1000}),
    ],
)
def test_of_many_faults_a_few_are_looked_at(path, fields):
    route = next(route for route in all_routes() if route.path == path)
    model = route.body_field.field_info.annotation
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"model": "eyas", **fields} if "model" in model.model_fields else fields)
    assert caught.value.error_count() < 10


def all_routes():
    return [route for family in FAMILIES for route in family.router.routes]


def test_prompts_of_too_many_tokens_are_400(client):
    for prompt in ([1] * ((1 << 20) + 1), [[1] * (1 << 19)] * 3):
        response = client.post("/v1/completions", json={"model": "eyas", "prompt": prompt})
        assert response.status_code == 400
        assert "at most 1048576" in response.json()["error"]["message"]


def test_nothing_is_taken_for_a_request_behind_a_body_of_two_lengths(server):
    head = b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head + b"0\r\n\r\nGET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
