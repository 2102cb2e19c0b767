"""Chat by plain HTTP: the order of chunks, every option, every refusal."""

import json

import pytest

QUESTION = [{"role": "user", "content": "Tell me a story."}]


def ask(client, **fields):
    body = {"model": "eyas", "messages": QUESTION, "max_tokens": 12, "temperature": 0, **fields}
    return client.post("/v1/chat/completions", json=body)


def events(response):
    """Pairs of name and data."""
    found = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            found.append((lines.get("event"), lines["data"]))
    return found


def chunks(response):
    data = [data for _, data in events(response)]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_stream_has_role_then_text_then_one_reason_then_usage_then_done(client):
    found = chunks(ask(client, stream=True, stream_options={"include_usage": True}))
    *choices, usage = found
    assert choices[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [bool(one["choices"][0]["finish_reason"]) for one in choices] == [False] * (len(choices) - 1) + [True]
    assert choices[-1]["choices"][0]["delta"] == {}
    assert all(one["usage"] is None for one in choices)
    assert usage["choices"] == []
    assert 1 < usage["usage"]["completion_tokens"] <= 12
    assert len({one["id"] for one in found}) == 1
    assert {one["object"] for one in found} == {"chat.completion.chunk"}


def test_stream_joined_is_the_whole_answer(client):
    whole = ask(client, max_tokens=40).json()["choices"][0]
    found = chunks(ask(client, max_tokens=40, stream=True))
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found) == whole["message"]["content"]
    assert found[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]


def test_several_answers_are_those_of_the_seeds_one_by_one(client):
    options = {"temperature": 1, "max_tokens": 10}
    several = ask(client, n=3, seed=5, **options).json()
    alone = [ask(client, seed=5 + i, **options).json()["choices"][0]["message"]["content"] for i in range(3)]
    assert [one["message"]["content"] for one in several["choices"]] == alone
    assert len(set(alone)) > 1
    found = chunks(ask(client, n=3, seed=5, stream=True, **options))
    texts = ["", "", ""]
    for one in found:
        texts[one["choices"][0]["index"]] += one["choices"][0]["delta"].get("content", "")
    assert texts == alone


def test_log_probabilities_are_of_the_text_and_the_same_in_a_stream(client):
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}
    whole = ask(client, **options).json()["choices"][0]
    table = whole["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in table).decode() == whole["message"]["content"]
    assert all(one["logprob"] == one["top_logprobs"][0]["logprob"] for one in table), "greedy takes the best"
    assert all(len(one["top_logprobs"]) == 3 for one in table)
    found = chunks(ask(client, stream=True, **options))
    streamed = [one for chunk in found if (logs := chunk["choices"][0]["logprobs"]) for one in logs["content"]]
    assert streamed == table


def test_logit_bias_forbids_and_forces(client):
    token = client.post("/tokenize", json={"prompt": "x", "add_special_tokens": False}).json()["tokens"][0]
    forced = ask(client, logit_bias={str(token): 100}, max_tokens=4).json()["choices"][0]["message"]["content"]
    assert forced == "xxxx"
    best = ask(client, logprobs=True, max_tokens=1).json()["choices"][0]["logprobs"]["content"][0]["token"]
    (best_id,) = client.post("/tokenize", json={"prompt": best, "add_special_tokens": False}).json()["tokens"]
    other = ask(client, logit_bias={str(best_id): -100}, max_tokens=1).json()["choices"][0]["message"]["content"]
    assert other != best


def test_stop_strings_end_the_answer_before_them(client):
    text = ask(client, max_tokens=30).json()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:4]
    ended = ask(client, max_tokens=30, stop=[stop, "never there"]).json()["choices"][0]
    assert ended["finish_reason"] == "stop"
    assert ended["message"]["content"] == text[: text.index(stop)]


@pytest.mark.parametrize("content", [[{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]])
def test_parts_are_the_text_they_join_to(client, content):
    whole, parts = ask(client), ask(client, messages=[{"role": "user", "content": content}])
    assert parts.json()["choices"] == whole.json()["choices"]


def test_a_message_may_be_sent_back_as_it_came(client):
    message = ask(client).json()["choices"][0]["message"]
    answer = ask(client, messages=[*QUESTION, message, {"role": "user", "content": "Go on."}])
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_answers_in_json_follow_their_schema(client):
    schema = {"type": "object", "properties": {"age": {"enum": [7, 70]}}, "required": ["age"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    text = ask(client, response_format=form, max_tokens=60).json()["choices"][0]["message"]["content"]
    assert json.loads(text)["age"] in (7, 70)
    assert ask(client, response_format={"type": "text"}).json()["choices"] == ask(client).json()["choices"]


INERT = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "x",
    "prompt_cache_key": "k",
    "modalities": ["text"],
}


def test_fields_for_openai_alone_change_nothing(client):
    assert ask(client, **INERT).json()["choices"] == ask(client).json()["choices"]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
        ({"nonsense": 1}, "nonsense", "unsupported_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"seed": -3}, "seed", "invalid_value"),
        ({"seed": 2**70}, "seed", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 3}, "max_tokens", "invalid_value"),
        ({"max_tokens": None, "max_completion_tokens": 10**18}, "max_completion_tokens", "invalid_value"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"stop": ""}, "stop", "invalid_value"),
        ({"stop": ["x", ""]}, "stop.1", "invalid_value"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", None),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", None),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "invalid_value"),
        ({"presence_penalty": 1e9}, "presence_penalty", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}},
            "response_format",
            "invalid_schema",
        ),
    ],
)
def test_faults_are_400_and_name_the_field(client, fields, param, code):
    response = ask(client, **fields)
    if "stream_options" not in fields:
        assert ask(client, stream=True, **fields).json() == response.json()
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert error["code"] == (code or "missing_required_parameter")
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    "content",
    [[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], [{"type": "text"}], 5, None],
)
def test_other_content_than_text_is_refused(client, content):
    response = ask(client, messages=[{"role": "user", "content": content}])
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages.0.content")


def test_messages_that_the_template_refuses_are_a_fault_of_messages(client):
    response = ask(client, messages=[*QUESTION, *QUESTION])
    assert response.status_code == 400
    assert "take turns" in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "messages"


def test_unknown_models_are_404(client):
    response = ask(client, model="eyas:none")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
