"""POST /v1/chat/completions."""

import time
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from griffinlm.generation.answering import Options
from griffinlm.generation.job import End, Job, Piece
from griffinlm.serve.errors import ApiError, AsciiJSONResponse
from griffinlm.serve.fields import (
    MOST_ALTERNATIVES,
    InertFields,
    Messages,
    NumTokens,
    ResponseFormat,
    SamplingFields,
    StopFields,
    StreamOptions,
    alternatives,
    check_grammars,
    checked_options,
    schema_of,
)
from griffinlm.serve.served import AskerDependency, require_time
from griffinlm.serve.shapes import log_probability_table, usage_table
from griffinlm.serve.stream import DONE, EventStream, event
from griffinlm.serve.worker import Answers
from griffinlm.text import Tokenizer

router = APIRouter()


class ChatRequest(SamplingFields, StopFields, InertFields):
    """A conversation to be answered."""

    model: str
    messages: Messages
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    """Taken without effect."""

    def options(self, default_max_tokens: int) -> Options:
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ApiError(
                400,
                "max_tokens and max_completion_tokens are both given; only one may be",
                param="max_tokens",
                code="invalid_value",
            )
        return Options(
            max_tokens=self.max_completion_tokens or self.max_tokens or default_max_tokens,
            json_schema=schema_of(self.response_format),
        )


@router.post("/v1/chat/completions")
async def chat_completions(body: ChatRequest, asker: AskerDependency) -> Response:
    """Answers a conversation."""
    served = asker.served
    adapter = served.adapter(body.model)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options", code="invalid_value")
    if (body.n or 1) > served.most_answers:
        message = f"n is {body.n}; at most {served.most_answers} answers can be taken at once"
        raise ApiError(400, message, param="n", code="invalid_value")
    check_grammars(body.n or 1, body.response_format)
    options = checked_options(
        body.options(served.settings.default_max_tokens),
        body.sampling(),
        body.stops(),
        alternatives(body.logprobs, body.top_logprobs),
        num_answers=body.n or 1,
    )
    messages = [message.plain() for message in body.messages]
    token_ids, boundaries = await asker.on_text_thread(_read, served.tokenizer, messages)
    job = Job(
        asker.tenant,
        token_ids,
        options,
        adapter=adapter,
        num_answers=body.n or 1,
        boundaries=boundaries,
        timeout_seconds=served.settings.request_timeout_seconds,
    )
    shape = _Shape(body.model, served.tokenizer)
    if not body.stream:
        (ends,) = await asker.ends([job])
        return await asker.on_text_thread(shape.whole, ends)
    answers = await served.submit(job)
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return EventStream(shape.chunks(answers, wants_usage), answers)


def _read(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """The document, and where in it the messages before the last one end."""
    token_ids = tokenizer.encode_chat(messages)
    if len(messages) < 3:
        return token_ids, []
    before = tokenizer.encode_chat(messages[:-1], False)
    return token_ids, [len(before)] if token_ids[: len(before)] == before else []


class _Shape:
    """OpenAI's form of an answer to one request."""

    def __init__(self, model_name: str, tokenizer: Tokenizer) -> None:
        self._head = {"id": f"chatcmpl-{token_hex(12)}", "created": int(time.time()), "model": model_name}
        self._tokenizer = tokenizer

    def whole(self, ends: Sequence[End]) -> Response:
        choices = [
            {
                "index": end.answer,
                "message": {"role": "assistant", "content": end.text, "refusal": None, "annotations": []},
                "logprobs": log_probability_table(self._tokenizer, end.log_probabilities),
                "finish_reason": end.finish_reason,
            }
            for end in ends
        ]
        usage = usage_table([end.usage for end in ends])
        return AsciiJSONResponse({**self._head, "object": "chat.completion", "choices": choices, "usage": usage})

    async def chunks(self, answers: Answers, wants_usage: bool) -> AsyncIterator[bytes]:
        """Role first, then text, one reason to end a choice, the usage if wanted, and the word that ends a stream."""
        extra = {"usage": None} if wants_usage else {}
        for index in range(answers.job.num_answers):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, **extra)
        ends: list[End] = []
        async for told in answers:
            if isinstance(told, Piece):
                table = log_probability_table(self._tokenizer, told.log_probabilities)
                if told.text or (table is not None and table["content"]):
                    yield self._chunk(told.answer, {"content": told.text}, table, **extra)
                continue
            if told.error is not None:
                raise told.error
            require_time([told])
            ends.append(told)
            yield self._chunk(told.answer, {}, None, told.finish_reason, **extra)
        if wants_usage:
            usage = usage_table([end.usage for end in ends])
            yield event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        yield DONE

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None, **extra: Any
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **extra})
