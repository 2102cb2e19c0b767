"""A client that holds a chat over a stream and notes when every token comes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx
from peers.programs import RunError

from .chats import QUESTION, Chat

SAMPLING = {"temperature": 0.8, "top_p": 0.95, "top_k": 40}
LONGEST_WAIT_SECONDS = 600
ENDS = ("response.completed", "response.incomplete")


@dataclass(frozen=True)
class Answer:
    """When an answer came."""

    kind: str
    """Of what was sent."""
    first_token_seconds: float
    """Since the request was sent; of an empty answer until its end."""
    between_seconds: tuple[float, ...]
    """Between one piece of text and the next."""
    num_tokens: int


@dataclass
class _Told:
    """What the events of a stream say so far."""

    text: str = ""
    num_tokens: int | None = None
    response_id: str | None = None

    def take(self, event: dict[str, Any]) -> bool:
        """Whether an event of chat completions or of responses brings text."""
        usage, new = event.get("usage"), ""
        if event.get("choices"):
            new = event["choices"][0]["delta"].get("content") or ""
        elif event.get("type") == "response.output_text.delta":
            new = event["delta"]
        elif event.get("type") in ENDS:
            usage, self.response_id = event["response"]["usage"], event["response"]["id"]
        if usage:
            self.num_tokens = usage.get("output_tokens", usage.get("completion_tokens"))
        self.text += new
        return new != ""


def hold(chat: Chat, url: str, model: str, has_responses: bool) -> list[Answer]:
    """Takes all turns of a chat, one after the other.

    Raises:
        RunError: the server refuses one, or breaks off.
    """
    by_id = chat.kind.is_by_id and has_responses
    answers, said, before = [], [], None
    with httpx.Client(base_url=url, timeout=LONGEST_WAIT_SECONDS) as client:
        for turn, (message, max_tokens) in enumerate(zip(chat.messages, chat.max_tokens, strict=True)):
            kind = QUESTION if len(chat.messages) > 1 and turn == 0 else chat.kind.name
            said.append({"role": "user", "content": message})
            body = {"model": model, "stream": True, "seed": chat.seed, **SAMPLING}
            if by_id:
                path = "/v1/responses"
                body |= {"input": message, "max_output_tokens": max_tokens, "previous_response_id": before}
            else:
                path = "/v1/chat/completions"
                body |= {"messages": said, "max_tokens": max_tokens, "stream_options": {"include_usage": True}}
            answer, told = _timed(client, path, body, kind)
            answers.append(answer)
            said.append({"role": "assistant", "content": told.text})
            before = told.response_id
    return answers


def _timed(client: httpx.Client, path: str, body: dict[str, Any], kind: str) -> tuple[Answer, _Told]:
    told = _Told()
    start = time.perf_counter()
    try:
        with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                raise RunError(f"{path} answered {response.status_code}: {response.read()[:200]!r}")
            times = [time.perf_counter() for event in _events(response) if told.take(event)]
    except httpx.HTTPError as error:
        raise RunError(f"{path} broke off: {error}") from error
    first = (times[0] if times else time.perf_counter()) - start
    between = tuple(later - earlier for earlier, later in pairwise(times))
    # Who tells no usage sends a token a piece.
    return Answer(kind, first, between, len(times) if told.num_tokens is None else told.num_tokens), told


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if event.get("error"):
            raise RunError(f"the stream tells a fault: {str(event['error'])[:200]}")
        yield event
