"""Conversations that fork, rewind, stop and go on at random through one service, and what each must have said."""

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.candidates import log_softmax, uniforms
from griffinlm.generation.job import End, Job, Piece
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.sampling import Sampler
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateNotFoundError
from griffinlm.generation.suspended import Suspended

TENANTS = ("a", "b", "c")
ADAPTERS = (None, None, "low_rank", "tuned")
MOST_TOKENS = 9
"""Of a message, and of an answer."""


@dataclass(frozen=True)
class Turn:
    """One answer in its document."""

    first: int
    """Place of its first token."""
    token_ids: list[int]
    options: GenerationOptions
    adapter: str | None
    state_id: str | None
    """Of the state at its end."""


@dataclass(eq=False)
class Talk:
    """One conversation."""

    tenant: str
    adapter: str | None
    token_ids: list[int]
    turns: list[Turn] = field(default_factory=list)
    num_turns_taken: int = 0


@dataclass
class Traffic:
    """Random conversations; `run` takes every one through its turns and checks all that was ever said."""

    service: GenerationService
    seed: int
    num_talks: int
    num_turns: int
    bound: float
    """How far the logits of two ways through the model may lie apart, in units of max(1, max|logit|)."""
    num_at_once: int = 12

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.model = self.service.model
        self.bos = self.model.tokenizer.bos_id
        self.waiting = [
            Talk(self.random.choice(TENANTS), self.random.choice(ADAPTERS), [self.bos]) for _ in range(self.num_talks)
        ]
        self.finished: list[Talk] = []
        self.running: dict[Job, tuple[Talk, str]] = {}
        """Jobs with the text told so far."""
        self.suspended: list[tuple[Talk, Suspended, str]] = []
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        while self.waiting or self.running or self.suspended:
            self.begin()
            self.interrupt()
            for event in self.service.step(0.01):
                self.note(event)
        for talk in self.finished:
            self.check(talk)

    # What the clients do.

    def begin(self) -> None:
        while len(self.running) < self.num_at_once and (self.waiting or self.suspended):
            try:
                if self.suspended and self.random.random() < 0.5:
                    self.resume()
                elif self.waiting:
                    self.speak(self.waiting[self.random.randrange(len(self.waiting))])
                else:
                    break
            except QueueFullError:
                self.counts["refused, full"] += 1
                break

    def speak(self, talk: Talk) -> None:
        if talk.turns and self.random.random() < 0.06:
            self.rewind(talk)
        if self.random.random() < 0.04:
            self.fork(talk)
        adapter = self.random.choice(ADAPTERS) if self.random.random() < 0.05 else talk.adapter
        message = [self.random.randrange(8, 280) for _ in range(self.random.randint(1, MOST_TOKENS))]
        options = GenerationOptions.of(
            {
                "max_tokens": self.random.randint(1, MOST_TOKENS),
                "temperature": self.random.choice([0.0, 1.0]),
                "seed": self.random.randrange(1000),
            }
        )
        state_id, token_ids = None, talk.token_ids + message
        last = talk.turns[-1] if talk.turns else None
        is_last = last is not None and last.first + len(last.token_ids) == len(talk.token_ids)
        if is_last and last.adapter == adapter and last.state_id and self.random.random() < 0.2:
            state_id, token_ids = last.state_id, message
        job = Job(
            talk.tenant,
            token_ids,
            options,
            state_id=state_id,
            adapter=adapter,
            boundaries=(len(talk.token_ids),),
            priority=self.random.randrange(2),
        )
        self.service.submit(job)
        self.counts["from a kept state's id"] += state_id is not None
        self.waiting.remove(talk)
        self.running[job] = talk, ""
        talk.token_ids = talk.token_ids + message

    def rewind(self, talk: Talk) -> None:
        self.check(talk)
        self.counts["rewound"] += 1
        kept = self.random.randrange(len(talk.turns))
        talk.token_ids, talk.turns = talk.token_ids[: talk.turns[kept].first], talk.turns[:kept]

    def fork(self, talk: Talk) -> None:
        others = [other for other in self.waiting if other.tenant == talk.tenant and other is not talk]
        if others:
            self.check(talk)
            self.counts["forked"] += 1
            other = self.random.choice(others)
            talk.token_ids, talk.turns, talk.adapter = list(other.token_ids), list(other.turns), other.adapter

    def interrupt(self) -> None:
        if not self.running or self.random.random() > 0.1:
            return
        job = self.random.choice(list(self.running))
        talk, told = self.running[job]
        if self.random.random() < 0.4:
            assert self.service.cancel(job)
            self.counts["cancelled"] += 1
            del self.running[job]
            self.end_turn(talk)
            return
        try:
            suspended = self.service.suspend(job)
        except StateNotFoundError:
            # Its start was dropped for room while it waited, which its end will tell.
            return
        if suspended is not None:
            self.counts["suspended"] += 1
            if self.random.random() < 0.5:
                suspended = Suspended.from_bytes(suspended.to_bytes(), self.model)
            del self.running[job]
            self.suspended.append((talk, suspended, told))

    def resume(self) -> None:
        talk, suspended, told = self.random.choice(self.suspended)
        job = self.service.resume(suspended, talk.tenant)
        self.suspended = [one for one in self.suspended if one[1] is not suspended]
        self.running[job] = talk, told
        self.counts["resumed"] += 1

    def end_turn(self, talk: Talk) -> None:
        talk.num_turns_taken += 1
        (self.finished if talk.num_turns_taken == self.num_turns else self.waiting).append(talk)

    # What the service says.

    def note(self, event: Piece | End) -> None:
        talk, told = self.running[event.job]
        if isinstance(event, Piece):
            self.running[event.job] = talk, told + event.text
            return
        del self.running[event.job]
        if event.error is not None:
            # What was kept may have been dropped for room; then the client sends everything.
            assert isinstance(event.error, StateNotFoundError)
            assert event.job.state_id is not None
            self.counts["kept state gone"] += 1
            talk.token_ids, talk.turns = talk.token_ids[: -len(event.job.token_ids)], list(talk.turns)
            talk.turns[-1] = replace(talk.turns[-1], state_id=None)
            self.waiting.append(talk)
            return
        assert told == event.text
        assert event.usage.num_prompt_tokens == len(talk.token_ids)
        assert event.not_kept is None
        self.counts["answers"] += 1
        self.counts["tokens"] += len(event.token_ids)
        turn = Turn(len(talk.token_ids), event.token_ids, event.job.options, event.job.adapter, event.end_state_id)
        talk.turns.append(turn)
        talk.token_ids = talk.token_ids + event.token_ids
        self.end_turn(talk)

    # Whether it is true.

    def check(self, talk: Talk) -> None:
        """Every answer of a conversation against one forward, of each adapter, over all its tokens."""
        for adapter in {turn.adapter for turn in talk.turns}:
            view = self.model.with_adapter(adapter)
            state, num_known = view.initial_state(), len(view.initial_ids)
            logits, _ = view.forward([talk.token_ids[num_known:]], state)
            for turn in talk.turns:
                if turn.adapter == adapter:
                    for place, token in enumerate(turn.token_ids, turn.first):
                        self.check_token(logits[0, place - 1 - num_known], place, token, turn.options)
                    self.counts["answers checked"] += 1

    def check_token(self, logits: np.ndarray, place: int, token: int, options: GenerationOptions) -> None:
        logits = logits[: self.model.tokenizer.vocab_size]
        expected = Sampler(options.sampling, first_position=place).choose(logits)
        if token == expected:
            return
        # Two computations that differ by the bound may choose differently only where the choice lies on an edge.
        most = 2 * self.bound * max(1.0, float(np.abs(logits).max()))
        if options.sampling.temperature == 0:
            self.counts["ties, greedy"] += 1
            assert logits[expected] - logits[token] <= most
            return
        self.counts["ties, drawn"] += 1
        reached = np.cumsum(np.exp(log_softmax(logits)))
        number = next(uniforms(options.sampling.seed, place))
        assert reached[token] + most + 1e-5 >= number >= (reached[token - 1] if token else 0.0) - most - 1e-5
