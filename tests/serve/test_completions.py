"""Completions, embeddings, tokens and metrics against the library."""

import base64
import json
import re

import numpy as np
import pytest
from tolerances import TOLERANCES

import griffinlm
from griffinlm.generation.candidates import log_softmax
from serve.test_chat_completions import chunks

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model():
    return griffinlm.load("eyas", threads=1)


def complete(client, **fields):
    body = {"model": "eyas", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}
    return client.post("/v1/completions", json=body)


def test_a_completion_is_what_the_library_writes(client, model):
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 4, "min_p": 0.02}):
        found = complete(client, **options).json()["choices"][0]
        expected = model.generate(PROMPT, max_tokens=12, **options)
        assert found["text"] == expected.text
        assert found["finish_reason"] == expected.finish_reason


def test_prompts_of_texts_and_of_tokens_are_one(client, model):
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPT)]
    text = complete(client).json()["choices"][0]["text"]
    assert complete(client, prompt=ids).json()["choices"][0]["text"] == text
    several = complete(client, prompt=[PROMPT, "The hawk"], n=2).json()["choices"]
    assert [one["index"] for one in several] == [0, 1, 2, 3]
    assert [one["text"] for one in several[:2]] == [text, text]
    assert [one["text"] for one in complete(client, prompt=[ids, ids]).json()["choices"]] == [text, text]


def test_stream_joined_is_the_whole_completion(client):
    fields = {"prompt": [PROMPT, "The hawk"], "n": 2, "seed": 1, "temperature": 1, "echo": True}
    whole = [one["text"] for one in complete(client, **fields).json()["choices"]]
    texts = [""] * 4
    *told, usage = chunks(complete(client, stream=True, stream_options={"include_usage": True}, **fields))
    for chunk in told:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == whole
    assert usage["usage"]["completion_tokens"] > 0
    assert usage["choices"] == []


def test_prompt_log_probabilities_are_the_librarys_scores(client, model):
    found = complete(client, echo=True, logprobs=2, max_tokens=0).json()["choices"][0]
    logs = found["logprobs"]
    assert found["text"] == PROMPT == "".join(logs["tokens"])
    bound = TOLERANCES["model", "float32", "onnx"] * 20
    np.testing.assert_allclose(logs["token_logprobs"], model.score(PROMPT), atol=bound, rtol=bound)
    assert logs["text_offset"] == [len("".join(logs["tokens"][:place])) for place in range(len(logs["tokens"]))]
    assert all(len(top) == 2 for top in logs["top_logprobs"])
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPT)]
    by_ids = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=0).json()["choices"][0]["logprobs"]
    assert by_ids["token_logprobs"] == [None, *logs["token_logprobs"]]


def test_offsets_are_places_in_the_text(client, model):
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("a 鷹 and 💥 b")]
    found = complete(client, prompt=ids, echo=True, logprobs=0, max_tokens=0).json()["choices"][0]
    logs = found["logprobs"]
    for place, token in enumerate(ids):
        data = model.tokenizer.token_bytes(token)
        if data is not None and data.isascii():
            assert found["text"].startswith(data.decode(), logs["text_offset"][place])
    assert logs["text_offset"][0] == logs["text_offset"][1] == 0


def test_log_probabilities_of_the_answer_go_on_behind_those_of_the_prompt(client):
    both = complete(client, echo=True, logprobs=1, max_tokens=5).json()["choices"][0]["logprobs"]
    prompt = complete(client, echo=True, logprobs=1, max_tokens=0).json()["choices"][0]["logprobs"]
    answer = complete(client, logprobs=1, max_tokens=5).json()["choices"][0]["logprobs"]
    assert both["tokens"] == prompt["tokens"] + answer["tokens"]
    np.testing.assert_allclose(both["token_logprobs"], prompt["token_logprobs"] + answer["token_logprobs"], rtol=1e-3)


@pytest.mark.parametrize("echo", [False, True])
def test_log_probabilities_in_a_stream_are_those_of_the_whole_answer(client, echo):
    fields = {"prompt": [PROMPT, "The hawk"], "logprobs": 2, "echo": echo, "max_tokens": 9}
    whole = complete(client, **fields).json()["choices"]
    streamed = [{"text": "", "logprobs": {}} for _ in whole]
    for chunk in chunks(complete(client, stream=True, **fields)):
        (choice,) = chunk["choices"]
        streamed[choice["index"]]["text"] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            streamed[choice["index"]]["logprobs"].setdefault(name, []).extend(values)
    for one, expected in zip(streamed, whole, strict=True):
        assert one["text"] == expected["text"]
        assert one["logprobs"]["tokens"] == expected["logprobs"]["tokens"]
        assert one["logprobs"]["text_offset"] == expected["logprobs"]["text_offset"]
        bound = TOLERANCES["model", "float32", "onnx"] * 20
        found = one["logprobs"]["token_logprobs"]
        np.testing.assert_allclose(found, expected["logprobs"]["token_logprobs"], atol=bound, rtol=bound)


def test_offsets_in_a_stream_are_those_of_the_whole_answer_where_text_is_held_back(client):
    fields = {"logprobs": 0, "max_tokens": 20}
    logs = complete(client, **fields).json()["choices"][0]["logprobs"]
    # The end of a token's text, and then what never comes.
    fields["stop"] = [logs["tokens"][place][-1] + "\x00" for place in (3, 4, 8)]
    expected = complete(client, **fields).json()["choices"][0]["logprobs"]["text_offset"]
    assert expected == logs["text_offset"]
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks(complete(client, stream=True, **fields))]
    assert [offset for one in told if one is not None for offset in one["text_offset"]] == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"prompt": [10**9]}, "prompt"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_tokens": 0, "n": 2}, "max_tokens"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
    ],
)
def test_faults_are_400_and_name_the_field(client, fields, param):
    response = complete(client, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_an_embedding_is_the_normal_hidden_state_after_the_text(client, model):
    texts = ["the hawk", "the griffin is old"]
    found = client.post("/v1/embeddings", json={"model": "eyas", "input": texts}).json()
    for text, one in zip(texts, found["data"], strict=True):
        state = model.read([model.tokenizer.bos_id, *model.tokenizer.encode(text)])
        hidden = [array for name, array in state.arrays().items() if name.endswith(".hidden")][-1][0]
        np.testing.assert_allclose(one["embedding"], hidden / np.linalg.norm(hidden), atol=1e-5)
    coded = client.post("/v1/embeddings", json={"model": "eyas", "input": texts, "encoding_format": "base64"}).json()
    for plain, one in zip(found["data"], coded["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(one["embedding"]), "<f4")
        np.testing.assert_allclose(decoded, plain["embedding"], atol=1e-5)
    assert found["usage"]["prompt_tokens"] == sum(1 + len(model.tokenizer.encode(text)) for text in texts)


def test_embeddings_of_another_size_are_refused(client):
    response = client.post("/v1/embeddings", json={"model": "eyas", "input": "x", "dimensions": 3})
    assert response.json()["error"]["param"] == "dimensions"


def test_tokens_are_the_tokenizers_and_back(client, model):
    messages = [{"role": "user", "content": PROMPT}]
    ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert ids == model.tokenizer.encode_chat(messages)
    found = client.post("/tokenize", json={"prompt": PROMPT}).json()
    assert found == {"tokens": [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPT)], "count": found["count"]}
    assert client.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": PROMPT}
    assert client.post("/tokenize", json={}).status_code == 400
    for path, given in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
        assert client.post(path, json={"model": "other", **given}).status_code == 404
    assert client.post("/detokenize", json={"tokens": [-1]}).status_code == 400


def test_metrics_count_tokens(client):
    def read():
        text = client.get("/metrics").text
        return {name: float(value) for name, value in re.findall(r"^(griffinlm_\w+) (\S+)$", text, re.MULTILINE)}

    before = read()
    usage = complete(client, prompt="A text that was not there before").json()["usage"]
    after = read()
    for name, count in (("prompt", usage["prompt_tokens"]), ("written", usage["completion_tokens"])):
        assert after[f"griffinlm_{name}_tokens_total"] - before[f"griffinlm_{name}_tokens_total"] == count
    assert after["griffinlm_running_answers"] == 0
    assert after["griffinlm_free_slots"] > 0


def test_models_tell_the_size_of_a_state(client, model):
    (found,) = client.get("/v1/models").json()["data"]
    assert found == client.get("/v1/models/eyas").json()
    assert found["state_bytes"] == model.new_state().nbytes
    assert client.get("/v1/models/other").status_code == 404


def test_the_page_and_its_files_are_open_and_closed_to_scripts_of_others(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"/{name}").status_code == 200, name
    for name in ("page.py", "page/app.js", "..%2fapp.py", "index.html%00", "__init__.py"):
        assert client.get(f"/{name}").status_code == 404, name


def test_the_document_of_the_interface_names_every_route(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/responses", "/v1/states/{state_id}", "/metrics"} <= set(paths)
    assert json.dumps(paths)


def test_log_softmax_of_the_library_is_what_log_probabilities_are(client, model):
    logits, _ = model.forward([[model.tokenizer.bos_id, *model.tokenizer.encode(PROMPT)]], logits="last")
    best = float(log_softmax(logits[0, -1]).max())
    found = complete(client, logprobs=1, max_tokens=1).json()["choices"][0]["logprobs"]["token_logprobs"][0]
    assert abs(found - best) < 1e-4
