"""POST /tokenize and /detokenize."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field

from griffinlm.serve.errors import ApiError, AsciiJSONResponse
from griffinlm.serve.fields import Messages, Strict, bounded
from griffinlm.serve.served import AskerDependency, Served

router = APIRouter()


class TokenizeRequest(Strict):
    """A text, or messages as the chat template writes them."""

    model: str | None = None
    prompt: Annotated[str, AfterValidator(bounded)] | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Whether a text gets its begin token, as it does in completions."""
    add_generation_prompt: bool | None = None
    """Whether messages end with the beginning of an answer."""


class DetokenizeRequest(Strict):
    """Tokens to be written as text."""

    model: str | None = None
    tokens: Annotated[list[int], Field(max_length=1 << 20, fail_fast=True)]


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, asker: AskerDependency) -> Response:
    """The ids of a text or of messages."""
    served = asker.served
    tokenizer = served.tokenizer
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "either prompt or messages must be given", param="prompt", code="invalid_value")
    _check_model(served, body.model)
    if body.messages is not None:
        messages = [message.plain() for message in body.messages]
        ids = await asker.on_text_thread(tokenizer.encode_chat, messages, body.add_generation_prompt is not False)
    else:
        ids = await asker.on_text_thread(tokenizer.encode, body.prompt)
        if body.add_special_tokens is not False and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
    return AsciiJSONResponse({"tokens": ids, "count": len(ids)})


@router.post("/detokenize")
async def detokenize(body: DetokenizeRequest, asker: AskerDependency) -> Response:
    """The text of tokens, without control tokens."""
    served = asker.served
    _check_model(served, body.model)
    return AsciiJSONResponse({"prompt": await asker.on_text_thread(served.tokenizer.decode, body.tokens)})


def _check_model(served: Served, name: str | None) -> None:
    """Adapters have the tokenizer of their model, but a name that nobody has is a fault."""
    if name is not None:
        served.adapter(name)
