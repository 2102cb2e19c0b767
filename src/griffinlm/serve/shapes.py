"""Parts of OpenAI's forms that several routes share."""

from collections.abc import Sequence
from typing import Any

from griffinlm.generation.job import Usage
from griffinlm.generation.sampling import TokenLogProbability
from griffinlm.text import Tokenizer

LEAST_LOG_PROBABILITY = -9999.0
"""In the place of minus infinity, which JSON has not."""


def usage_table(usages: Sequence[Usage]) -> dict[str, Any]:
    """Of all answers to one prompt, which was read once."""
    num_prompt, num_written = usages[0].num_prompt_tokens, sum(usage.num_written_tokens for usage in usages)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_written,
        "total_tokens": num_prompt + num_written,
        "prompt_tokens_details": {"cached_tokens": usages[0].num_cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def finite(log_probability: float) -> float:
    """A number that JSON has."""
    return max(log_probability, LEAST_LOG_PROBABILITY)


def log_probability_table(tokenizer: Tokenizer, logs: Sequence[TokenLogProbability] | None) -> dict[str, Any] | None:
    """`logprobs` of a choice. Tokens without text, such as the one that ends an answer, are left out."""
    if logs is None:
        return None
    return {"content": token_tables(tokenizer, logs), "refusal": None}


def token_tables(tokenizer: Tokenizer, logs: Sequence[TokenLogProbability]) -> list[dict[str, Any]]:
    """Every token that has text, with its alternatives."""
    tables = []
    for log in logs:
        if tokenizer.token_bytes(log.token) is not None:
            top = [_token_table(tokenizer, token, value) for token, value in log.alternatives]
            tables.append({**_token_table(tokenizer, log.token, log.log_probability), "top_logprobs": top})
    return tables


def _token_table(tokenizer: Tokenizer, token: int, log_probability: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {
        "token": f"<{token}>" if data is None else data.decode("utf-8", "replace"),
        "logprob": finite(log_probability),
        "bytes": None if data is None else list(data),
    }
