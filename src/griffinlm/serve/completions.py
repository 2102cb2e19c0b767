"""POST /v1/completions."""

import time
from collections.abc import AsyncIterator, Sequence
from secrets import token_hex
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from griffinlm.generation.answering import MAX_COUNT, GenerationOptions, Options
from griffinlm.generation.job import End, Job, Piece
from griffinlm.generation.sampling import TokenLogProbability
from griffinlm.serve.errors import ApiError, AsciiJSONResponse
from griffinlm.serve.fields import (
    MOST_CHARACTERS,
    InertFields,
    ResponseFormat,
    SamplingFields,
    StopFields,
    StreamOptions,
    check_grammars,
    checked_options,
    schema_of,
)
from griffinlm.serve.prompts import Prompts, read_prompts
from griffinlm.serve.served import Asker, AskerDependency, require_time
from griffinlm.serve.shapes import finite, usage_table
from griffinlm.serve.stream import DONE, EventStream, event, merged
from griffinlm.serve.worker import Answers
from griffinlm.text import Tokenizer

DEFAULT_MAX_TOKENS = 16
MOST_ALTERNATIVES = 5
MOST_ECHOED_SCORES = 1 << 16
"""Tokens of prompts that are told again with their log-probabilities: each takes some 200 bytes of an answer."""

router = APIRouter()


class CompletionRequest(SamplingFields, StopFields, InertFields):
    """Text, or tokens, to go on with."""

    model: str
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=MAX_COUNT)] | None = None
    """0 writes nothing, which is of use with `echo` and `logprobs`."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None
    best_of: int | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def options(self, num_prompts: int) -> GenerationOptions | None:
        """None where nothing is to be written."""
        num_tokens = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        given = Options(max_tokens=max(1, num_tokens), json_schema=schema_of(self.response_format))
        if self.logprobs is not None:
            given["log_probabilities"] = self.logprobs
        num_answers = num_prompts * (self.n or 1)
        checked = checked_options(given, self.sampling(), self.stops(), num_answers=num_answers, param="logprobs")
        return checked if num_tokens else None

    def check(self, prompts: Sequence[Sequence[int]], most_answers: int) -> None:
        """Refuses what cannot be together."""
        n, num_prompts = self.n or 1, len(prompts)
        if self.best_of not in (None, n):
            raise _wrong("best_of", f"best_of is {self.best_of}; it must be n, {n}: all answers are told")
        if self.stream_options is not None and not self.stream:
            raise _wrong("stream_options", "stream_options needs stream to be true")
        if self.max_tokens == 0 and (n > 1 or self.stream):
            raise _wrong("max_tokens", "max_tokens is 0; then there is one answer, and no stream")
        if n * num_prompts > most_answers:
            most = f"at most {most_answers} answers can be taken at once"
            raise _wrong("prompt" if num_prompts > 1 else "n", f"{num_prompts} prompts with {n} answers each; {most}")
        check_grammars(n * num_prompts, self.response_format)
        num_echoed = n * sum(map(len, prompts))
        most_echoed = MOST_CHARACTERS if self.logprobs is None else MOST_ECHOED_SCORES
        if self.echo and num_echoed > most_echoed:
            extra = "" if self.logprobs is None else " with logprobs"
            told = f"{num_echoed} tokens of prompts would be told again{extra}"
            raise _wrong("echo", f"{told}, those of a prompt for each of its {n} answers; at most {most_echoed} may be")


@router.post("/v1/completions")
async def completions(body: CompletionRequest, asker: AskerDependency) -> Response:
    """Goes on with each prompt."""
    served = asker.served
    adapter = served.adapter(body.model)
    prompts = await asker.on_text_thread(read_prompts, served.tokenizer, body.prompt, True)
    body.check(prompts, served.most_answers)
    options = body.options(len(prompts))
    jobs = [
        Job(
            asker.tenant,
            token_ids,
            options,
            adapter=adapter,
            num_answers=body.n or 1,
            prompt_log_probabilities=body.logprobs if body.echo else None,
            timeout_seconds=served.settings.request_timeout_seconds,
        )
        for token_ids in prompts
    ]
    shape = _Shape(asker, body, is_text=not _is_tokens(body.prompt))
    if not body.stream:
        return await asker.on_text_thread(shape.whole, jobs, await asker.ends(jobs))
    all_answers = await _submitted(asker, jobs)
    return EventStream(shape.chunks(all_answers), *all_answers)


async def _submitted(asker: Asker, jobs: Sequence[Job]) -> list[Answers]:
    """All, or none."""
    found: list[Answers] = []
    try:
        for job in jobs:
            found.append(await asker.served.submit(job))  # noqa: PERF401  (those submitted must be left)
    except BaseException:
        for answers in found:
            answers.leave()
        raise
    return found


class _Shape:
    """OpenAI's form of the answers to one request."""

    def __init__(self, asker: Asker, body: CompletionRequest, is_text: bool) -> None:
        self._asker, self._body, self._tokenizer = asker, body, asker.served.tokenizer
        self._num_hidden = 1 if is_text and self._tokenizer.bos_id is not None else 0
        """Tokens in front of a prompt that the client did not write."""
        self._head = {
            "id": f"cmpl-{token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
        }

    def whole(self, jobs: Sequence[Job], all_ends: Sequence[Sequence[End]]) -> Response:
        choices, n = [], self._body.n or 1
        for place, (job, echo, ends) in enumerate(zip(jobs, self._echoes(jobs), all_ends, strict=True)):
            choices += [
                {
                    "text": echo + end.text,
                    "index": place * n + end.answer,
                    "logprobs": self._logs(job, end),
                    "finish_reason": end.finish_reason,
                }
                for end in ends
            ]
        return AsciiJSONResponse({**self._head, "choices": choices, "usage": _total(all_ends)})

    async def chunks(self, all_answers: Sequence[Answers]) -> AsyncIterator[bytes]:
        """Text of all answers as it comes, one reason to end each, the usage if wanted.

        With `echo` and `logprobs` an answer comes at its end: what stands first is the prompt's, which is known then.
        """
        body, n = self._body, self._body.n or 1
        wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        extra = {"usage": None} if wants_usage else {}
        all_ends: list[list[End]] = [[] for _ in all_answers]
        echoes = await self._asker.on_text_thread(self._echoes, [answers.job for answers in all_answers])
        is_echoed: set[int] = set()
        offsets: dict[int, _Offsets] = {}
        is_held_back = bool(body.echo) and body.logprobs is not None
        async for place, told in merged(all_answers):
            index = place * n + told.answer
            if is_held_back and isinstance(told, Piece):
                continue
            echo = "" if index in is_echoed else echoes[place]
            is_echoed.add(index)
            if isinstance(told, Piece):
                logs = None
                if told.log_probabilities is not None:
                    logs = self._table(told.log_probabilities, offsets.setdefault(index, _Offsets(self._tokenizer)))
                yield self._chunk(index, echo + told.text, logs, None, extra)
                continue
            if told.error is not None:
                raise told.error
            require_time([told])
            all_ends[place].append(told)
            if is_held_back:
                yield await self._asker.on_text_thread(self._scored_chunk, index, echo, told, extra)
                echo = ""
            yield self._chunk(index, echo, None, told.finish_reason, extra)
        if wants_usage:
            yield event({**self._head, "choices": [], "usage": _total(all_ends)})
        yield DONE

    def _chunk(self, index: int, text: str, logs: Any, reason: str | None, extra: dict[str, None]) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logs, "finish_reason": reason}
        return event({**self._head, "choices": [choice], **extra})

    def _scored_chunk(self, index: int, echo: str, end: End, extra: dict[str, None]) -> bytes:
        return self._chunk(index, echo + end.text, self._logs(end.job, end), None, extra)

    def _echoes(self, jobs: Sequence[Job]) -> list[str]:
        """What stands in front of the answers of each job."""
        prompts = [job.token_ids[self._num_hidden :] if self._body.echo else [] for job in jobs]
        return [self._tokenizer.decode(prompt) for prompt in prompts]

    def _logs(self, job: Job, end: End) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        logs: list[TokenLogProbability | int] = []
        if self._body.echo:
            found = end.prompt_log_probabilities or []
            logs += [] if self._num_hidden else [job.token_ids[0]]
            logs += found
        return self._table([*logs, *(end.log_probabilities or [])], _Offsets(self._tokenizer))

    def _table(self, logs: Sequence[TokenLogProbability | int], text_offsets: "_Offsets") -> dict[str, Any]:
        """A token without anything before it, a bare number, has no probability."""
        tokens, values, tops, offsets = [], [], [], []
        for log in logs:
            token = log if isinstance(log, int) else log.token
            tokens.append(self._text(token))
            offsets.append(text_offsets.of_next(token))
            values.append(None if isinstance(log, int) else finite(log.log_probability))
            tops.append(None if isinstance(log, int) else {self._text(t): finite(v) for t, v in log.alternatives})
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _text(self, token: int) -> str:
        data = self._tokenizer.token_bytes(token)
        return f"<{token}>" if data is None else data.decode("utf-8", "replace")


class _Offsets:
    """Where the tokens of one answer stand in its text, however much of that has been told.

    Control tokens and all bytes of a character but its last take none of it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._text, self._next = tokenizer.stream(), 0

    def of_next(self, token: int) -> int:
        """That of the token behind those asked for before."""
        offset = self._next
        self._next += len(self._text.push(token))
        return offset


def _total(all_ends: Sequence[Sequence[End]]) -> dict[str, Any]:
    """The usage of several prompts."""
    tables = [usage_table([end.usage for end in ends]) for ends in all_ends]
    total = tables[0]
    for table in tables[1:]:
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            total[name] += table[name]
        total["prompt_tokens_details"]["cached_tokens"] += table["prompt_tokens_details"]["cached_tokens"]
    return total


def _is_tokens(prompt: Any) -> bool:
    return isinstance(prompt, list) and not isinstance(prompt[0], str)


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")
