"""Requests join and leave the slots of an executor at every step. Knows token ids and slot numbers, nothing else."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from griffinlm.generation.request import FinishReason, Request, TokenEvent

PREFILL_CHUNK_TOKENS = 512


@dataclass(eq=False)
class _Running:
    request: Request
    slot: int
    num_read: int = 0
    """Tokens of the prompt that the model has read."""
    num_generated: int = 0
    last_token: int = -1


class Scheduler:
    """Runs requests in the order they came, as many at a time as there are slots.

    Args:
        executor: an `griffinlm.executor.Executor`, used by this scheduler alone.
        make_chunk: turns a list of ids into what the executor's `prefill` takes as tokens of one row.
    """

    def __init__(self, executor: Any, make_chunk: Any) -> None:
        self._executor = executor
        self._make_chunk = make_chunk
        self._free = deque(range(executor.num_slots))
        self._waiting: deque[Request] = deque()
        self._running: dict[Request, _Running] = {}

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        if not request.prompt:
            raise ValueError("a request's prompt has no tokens; it needs at least one")
        self._waiting.append(request)

    def cancel(self, request: Request) -> dict[str, Any] | None:
        """Ends a request now; gives its state without the last token, None if it was still waiting."""
        if request not in self._running:
            self._waiting.remove(request)
            return None
        return self._retire(self._running[request])

    def step(self) -> list[TokenEvent]:
        """Reads one chunk of every prompt still unread and one token of every other request."""
        self._admit()
        decoding = [r for r in self._running.values() if r.num_generated]
        events = []
        for running in [r for r in self._running.values() if not r.num_generated]:
            logits = self._read_chunk(running)
            if logits is not None:
                events.append(self._take(running, logits))
        if decoding:
            logits = self._executor.step([r.slot for r in decoding], [r.last_token for r in decoding])
            events += [self._take(running, row) for running, row in zip(decoding, logits, strict=True)]
        return events

    def _admit(self) -> None:
        while self._waiting and self._free:
            request = self._waiting.popleft()
            slot = self._free.popleft()
            if request.state is not None:
                self._executor.import_state(slot, request.state)
            self._running[request] = _Running(request, slot)

    def _read_chunk(self, running: _Running) -> Any:
        """The logits after the prompt once it is read to its end, else None."""
        prompt, first = running.request.prompt, running.num_read
        running.num_read = min(first + PREFILL_CHUNK_TOKENS, len(prompt))
        done = running.num_read == len(prompt)
        chunk = self._make_chunk(prompt[first : running.num_read])
        logits = self._executor.prefill([running.slot], chunk, None, "last" if done else "none")
        return logits[0, 0] if done else None

    def _take(self, running: _Running, logits: Any) -> TokenEvent:
        request = running.request
        token = request.chooser.choose(logits)
        running.last_token = token
        running.num_generated += 1
        reason: FinishReason | None = None
        if token in request.end_ids:
            reason = "stop"
        elif running.num_generated >= request.max_tokens:
            reason = "length"
        state = None if reason is None else self._retire(running)
        return TokenEvent(request, token, reason, state)

    def _retire(self, running: _Running) -> dict[str, Any]:
        state = self._executor.export_state(running.slot)
        self._executor.release(running.slot)
        del self._running[running.request]
        self._free.append(running.slot)
        return state
