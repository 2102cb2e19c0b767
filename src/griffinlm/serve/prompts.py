"""Prompts in the four forms that OpenAI's routes take: a text, texts, tokens, lists of tokens."""

from typing import Annotated

from pydantic import AfterValidator, Field

from griffinlm.serve.errors import ApiError
from griffinlm.serve.fields import bounded
from griffinlm.text import Tokenizer

MOST_PROMPTS = 2048

Tokens = Annotated[list[int], Field(min_length=1, fail_fast=True)]
Given = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
    | Tokens
    | Annotated[list[Tokens], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
)
Prompts = Annotated[Given, AfterValidator(bounded)]


def read_prompts(tokenizer: Tokenizer, given: Given, has_begin: bool) -> list[list[int]]:
    """The ids of each prompt: texts with BOS in front where there is one and it is wanted, tokens as they are.

    Raises:
        ApiError: a text without any token.
    """
    if isinstance(given, str):
        return [_encoded(tokenizer, given, has_begin)]
    found: list[list[int]] = []
    tokens: list[int] = []
    for one in given:
        if isinstance(one, str):
            found.append(_encoded(tokenizer, one, has_begin))
        elif isinstance(one, int):
            tokens.append(one)
        else:
            found.append(one)
    return found or [tokens]


def _encoded(tokenizer: Tokenizer, text: str, has_begin: bool) -> list[int]:
    begin = [tokenizer.bos_id] if has_begin and tokenizer.bos_id is not None else []
    ids = [*begin, *tokenizer.encode(text)]
    if not ids:
        raise ApiError(400, "a prompt is empty; it must have at least one token", code="invalid_value")
    return ids
