"""How many log-probabilities one request may be told."""

import pytest

from griffinlm.generation.answering import Options
from griffinlm.serve.errors import ApiError
from griffinlm.serve.fields import MOST_LOG_PROBABILITIES, checked_options
from serve.test_guards import CHAT
from serve.test_responses import FIRST, said

HALF = MOST_LOG_PROBABILITIES // 2
INCLUDED = {"include": ["message.output_text.logprobs"]}


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": said(FIRST), "max_tokens": 80_000, "logprobs": True, "top_logprobs": 20}, "top_logprobs"),
        (CHAT, {"messages": said(FIRST), "max_completion_tokens": 1 << 40, "logprobs": True}, "top_logprobs"),
        (CHAT, {"messages": said(FIRST), "n": 3, "max_tokens": HALF, "logprobs": True}, "top_logprobs"),
        ("/v1/responses", {"input": FIRST, "max_output_tokens": 80_000, "top_logprobs": 20}, "top_logprobs"),
        ("/v1/responses", {"input": FIRST, "max_output_tokens": 2 * HALF + 1, **INCLUDED}, "top_logprobs"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 80_000, "logprobs": 5}, "logprobs"),
        ("/v1/completions", {"prompt": ["a"] * 3, "max_tokens": HALF, "logprobs": 0}, "logprobs"),
    ],
)
def test_more_than_one_request_may_be_told_are_refused(client, path, fields, param):
    response = client.post(path, json={"model": "eyas", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert f"at most {MOST_LOG_PROBABILITIES} may be" in response.json()["error"]["message"]


def test_as_many_as_may_be_are_allowed():
    for num_answers, num_alternatives in ((1, 0), (2, 7), (128, 3)):
        most = MOST_LOG_PROBABILITIES // (num_alternatives + 1) // num_answers
        asked = Options(max_tokens=most, log_probabilities=num_alternatives)
        assert checked_options(asked, num_answers=num_answers).max_tokens == most
        with pytest.raises(ApiError, match=f"{num_alternatives + 1} of each token, with {most + 1} tokens"):
            checked_options(asked, Options(max_tokens=most + 1), num_answers=num_answers)


def test_without_log_probabilities_an_answer_may_be_as_long_as_its_time():
    assert checked_options(Options(max_tokens=1 << 40), num_answers=128).max_tokens == 1 << 40
