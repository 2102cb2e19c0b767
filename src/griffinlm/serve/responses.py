"""POST /v1/responses and what is stored of it."""

import time
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from griffinlm.generation.answering import Options
from griffinlm.generation.job import End, Piece
from griffinlm.generation.sampling import TokenLogProbability
from griffinlm.serve.errors import ApiError, AsciiJSONResponse, LongJSONResponse
from griffinlm.serve.fields import (
    MOST_ALTERNATIVES,
    MOST_MESSAGES,
    InertFields,
    Label,
    NumTokens,
    ObjectFormat,
    SamplingFields,
    Strict,
    TextFormat,
    bounded,
    checked_options,
)
from griffinlm.serve.records import Message
from griffinlm.serve.reply import Reply
from griffinlm.serve.served import Asker, AskerDependency
from griffinlm.serve.shapes import token_tables
from griffinlm.serve.stream import EventStream, event, while_connected

LOG_PROBABILITIES = "message.output_text.logprobs"

INCOMPLETE = {"length": "max_output_tokens", "deadline": "deadline"}
"""Why an answer is not complete, by its finish reason."""

router = APIRouter()


class ResponseTextPart(Strict):
    """A piece of a message."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: list[Any] | None = None
    """Taken without effect, as of an answer that is sent back."""


class InputMessage(Strict):
    """A message as a client sends it, and as it sends back an item of an output."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ResponseTextPart], Field(fail_fast=True)]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def plain(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class FlatSchemaFormat(Strict):
    """A schema, as responses name it."""

    type: Literal["json_schema"]
    name: Label | None = None
    description: Label | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextField(Strict):
    """The form of the answer."""

    format: Annotated[TextFormat | ObjectFormat | FlatSchemaFormat, Field(discriminator="type")] | None = None


class ResponseStreamOptions(Strict):
    """Taken without effect."""

    include_obfuscation: bool | None = None


class ResponseRequest(SamplingFields, InertFields):
    """Input to be answered."""

    model: str
    input: Annotated[
        str | Annotated[list[InputMessage], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)],
        AfterValidator(bounded),
    ]
    instructions: Annotated[str, AfterValidator(bounded)] | None = None
    previous_response_id: str | None = None
    max_output_tokens: NumTokens | None = None
    text: TextField | None = None
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """Taken without effect: nothing is ever cut off."""

    def messages(self) -> list[Message]:
        if isinstance(self.input, str):
            return [{"role": "user", "content": self.input}]
        return [message.plain() for message in self.input]

    def options(self, default_max_tokens: int) -> Options:
        options = Options(max_tokens=self.max_output_tokens or default_max_tokens)
        chosen = None if self.text is None else self.text.format
        if isinstance(chosen, FlatSchemaFormat):
            options["json_schema"] = chosen.schema_
        elif isinstance(chosen, ObjectFormat):
            options["json_schema"] = {"type": "object"}
        if self.include or self.top_logprobs is not None:
            options["log_probabilities"] = self.top_logprobs or 0
        return options


class StoredQuery(BaseModel):
    """What may be asked of a stored response: it is told whole, so that nothing has to be included."""

    model_config = ConfigDict(extra="forbid")

    include: Annotated[list[Literal["message.output_text.logprobs"]] | None, Field(alias="include[]")] = None
    """Taken without effect."""


@router.post("/v1/responses")
async def responses(body: ResponseRequest, asker: AskerDependency) -> Response:
    """Answers input behind a stored response, or at a beginning; what is kept of it goes on from there."""
    served = asker.served
    adapter = served.adapter(body.model)
    options = checked_options(body.options(served.settings.default_max_tokens), body.sampling())
    before = None
    if body.previous_response_id is not None:
        before = await asker.on_record_thread(served.records.get, asker.tenant, body.previous_response_id)
    reply = Reply(asker, adapter, before, body.instructions, body.messages(), options, body.store is not False)
    answer = _Answer(asker, body, reply)
    if body.stream:
        await reply.start()
        return EventStream(answer.events(), reply)
    return AsciiJSONResponse(await while_connected(asker.request, answer.whole()))


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, _: Annotated[StoredQuery, Query()], asker: AskerDependency) -> Response:
    """A stored response as it was told."""
    served = asker.served
    record = await asker.on_record_thread(served.records.get, asker.tenant, response_id, "response")
    return await asker.on_text_thread(LongJSONResponse, record.body)


@router.post("/v1/responses/{response_id}/cancel")
async def cancel_response(response_id: str, asker: AskerDependency) -> Response:
    """Refuses: what is stored is over, and nothing is written in the background."""
    served = asker.served
    await asker.on_record_thread(served.records.get, asker.tenant, response_id, "response")
    raise ApiError(
        400,
        "only responses made with background can be cancelled; one that is being written ends when its client leaves",
        param="response_id",
        code="invalid_value",
    )


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, asker: AskerDependency) -> Response:
    """Removes a stored response, and the states that nothing else stands on."""
    await asker.delete(response_id, "response")
    return AsciiJSONResponse({"id": response_id, "object": "response", "deleted": True})


class _Answer:
    """OpenAI's form of one response, and the events in which it comes to be."""

    def __init__(self, asker: Asker, body: ResponseRequest, reply: Reply) -> None:
        self._asker, self._body, self._reply = asker, body, reply
        self._id, self._message_id = f"resp_{token_hex(24)}", f"msg_{token_hex(24)}"
        self._created = int(time.time())
        self._num_events = 0

    async def whole(self) -> dict[str, Any]:
        await self._reply.start()
        try:
            return await self._finished(await self._reply.end())
        finally:
            self._reply.leave()

    async def events(self) -> AsyncIterator[bytes]:
        """Created, in progress, item, part, deltas, and the same outwards again, each with its number."""
        yield self._event("response.created", response=self._table("in_progress", []))
        yield self._event("response.in_progress", response=self._table("in_progress", []))
        yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", None))
        place = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        yield self._event("response.content_part.added", **place, part=self._part("", None))
        end: End | None = None
        async for told in self._reply.events():
            if isinstance(told, Piece):
                logs = self._logs(told.log_probabilities)
                if told.text or logs:
                    yield self._event("response.output_text.delta", **place, delta=told.text, logprobs=logs)
            else:
                end = told
        assert end is not None, "an answer has an end"
        whole = await self._finished(end)
        (item,) = whole["output"]
        (part,) = item["content"]
        yield self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        yield self._event("response.content_part.done", **place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{whole['status']}", response=whole)

    async def _finished(self, end: End) -> dict[str, Any]:
        """The whole response, stored."""
        whole = await self._asker.on_text_thread(self._whole, end)
        if self._reply.is_stored:
            known = {"id": self._id, "kind": "response", "model": self._body.model, "created": self._created}
            await self._reply.keep(await self._reply.record(end, **known, body=whole))
        return whole

    def _whole(self, end: End) -> dict[str, Any]:
        status = "completed" if end.finish_reason == "stop" else "incomplete"
        return self._table(status, [self._item(status, end)], end)

    def _event(self, name: str, **fields: Any) -> bytes:
        number, self._num_events = self._num_events, self._num_events + 1
        return event({"type": name, "sequence_number": number, **fields}, name)

    def _item(self, status: str, end: End | None) -> dict[str, Any]:
        content = [] if end is None else [self._part(end.text, end.log_probabilities)]
        return {
            "id": self._message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def _part(self, text: str, logs: Sequence[TokenLogProbability] | None) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logs(logs)}

    def _logs(self, logs: Sequence[TokenLogProbability] | None) -> list[dict[str, Any]]:
        return token_tables(self._asker.served.tokenizer, logs or [])

    def _table(self, status: str, output: list[dict[str, Any]], end: End | None = None) -> dict[str, Any]:
        body = self._body
        chosen = None if body.text is None else body.text.format
        usage = None if end is None else end.usage
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": INCOMPLETE[end.finish_reason]} if end and status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": None, "summary": None},
            "store": self._reply.is_stored,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"} if chosen is None else chosen.model_dump(by_alias=True)},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None
            if usage is None
            else {
                "input_tokens": usage.num_prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
                "output_tokens": usage.num_written_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.num_prompt_tokens + usage.num_written_tokens,
            },
            "user": body.user,
            "metadata": body.metadata or {},
        }
