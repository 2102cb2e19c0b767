"""An executor whose logits are what a slot has read, choosers that say a function of them, and a clock they move."""

import zlib
from dataclasses import dataclass, field

from griffinlm.errors import GriffinError
from griffinlm.generation.request import Request

END = 0
NUM_TOKENS = 40
POISON = -7
"""A token that executors refuse to read."""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self):
        return self.now


@dataclass
class FakeExecutor:
    """Its "logits" are the tokens that a slot has read. A call costs seconds of the clock: so much itself and a token.

    A released slot must be empty, a slot in use must not be imported into, and none may run twice in one call.
    """

    num_slots: int
    clock: Clock = field(default_factory=Clock)
    call_seconds: float = 0.0
    token_seconds: float = 0.0
    read: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    prefills: list = field(default_factory=list)
    """Slot and number of tokens of every call."""
    adapters: dict = field(default_factory=dict)

    def __post_init__(self):
        self.read = {slot: [] for slot in range(self.num_slots)}

    def prefill(self, slots, tokens, positions, logits):
        assert positions is None
        assert tokens
        (slot,) = slots
        self._refuse(tokens)
        self.prefills.append((slot, len(tokens)))
        self.clock.now += self.call_seconds + self.token_seconds * len(tokens)
        self.read[slot] += tokens
        return None if logits == "none" else _Nested(tuple(self.read[slot]))

    def step(self, slots, tokens):
        assert len(set(slots)) == len(slots)
        self._refuse(tokens)
        self.steps.append(list(slots))
        self.clock.now += self.call_seconds + self.token_seconds * len(tokens)
        for slot, token in zip(slots, tokens, strict=True):
            self.read[slot].append(token)
        return [tuple(self.read[slot]) for slot in slots]

    def export_state(self, slot):
        return {"read": list(self.read[slot])}

    def import_state(self, slot, arrays):
        assert self.read[slot] == []
        self._refuse(arrays["read"])
        self.read[slot] = list(arrays["read"])

    def use_adapter(self, slot, name):
        assert self.read[slot] == []
        self.adapters[slot] = name

    def release(self, slot):
        self.read[slot] = []
        self.adapters.pop(slot, None)

    def _refuse(self, tokens):
        if POISON in tokens:
            raise GriffinError(f"token id {POISON} is not in the vocabulary")


@dataclass
class FakeLoops(FakeExecutor):
    """Refuses what is out of order, and lets tokens leave after the loop that `exits` tells for what was read."""

    num_loops: int = 3
    exits: object = None
    """A function of the tokens read, from 1 to the number of loops."""
    depth: dict = field(default_factory=dict)
    """Loops that the token of each slot has been through."""
    num_rows: list = field(default_factory=list)

    def enter(self, slots, tokens):
        self._refuse(tokens)
        for slot, token in zip(slots, tokens, strict=True):
            assert slot not in self.depth
            self.depth[slot] = 0
            self.read[slot].append(token)

    def run_loop(self, slots):
        assert len(set(slots)) == len(slots) <= self.num_slots
        self.num_rows.append(len(slots))
        for slot in slots:
            self.depth[slot] += 1
            assert self.depth[slot] <= self.num_loops
        return [self.depth[slot] == self._exit(slot) for slot in slots]

    def leave(self, slots):
        assert all(self.depth.pop(slot) >= 1 for slot in slots)
        return [tuple(self.read[slot]) for slot in slots]

    def release(self, slot):
        self.depth.pop(slot, None)
        super().release(slot)

    def _exit(self, slot):
        return self.num_loops if self.exits is None else self.exits(tuple(self.read[slot]))


class _Nested:
    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        assert index in ((0, -1), (0, slice(-1, None)))
        return self.value if index == (0, -1) else [self.value]


class CountDown:
    """Says 3, 2, 1 and the end token, from whatever number it is given."""

    is_complete = False

    def __init__(self, start):
        self.next = start

    def choose(self, logits):
        token, self.next = self.next, self.next - 1
        return token


@dataclass
class Babble:
    """A token that everything read and the seed decide."""

    seed: int = 0
    is_complete = False

    def choose(self, logits):
        return zlib.crc32(repr((self.seed, *logits)).encode()) % NUM_TOKENS


def request(prompt, answers=3, max_tokens=100, state=None, **options):
    return Request(list(prompt), CountDown(answers), max_tokens, frozenset({END}), state, **options)


def babble(prompt, seed=0, max_tokens=100, state=None, **options):
    return Request(list(prompt), Babble(seed), max_tokens, frozenset({END}), state, **options)


def run(scheduler):
    events = []
    while scheduler.busy:
        events += scheduler.step()
    return events


def of(events, wanted):
    return [event for event in events if event.request is wanted]


def tokens_of(events, wanted):
    return [event.token for event in of(events, wanted) if event.token is not None]


def said_alone(prompt, seed, max_tokens, before=()):
    """What `babble` must say, without any scheduler."""
    read, said, chooser = [*before, *prompt], [], Babble(seed)
    while len(said) < max_tokens and (not said or said[-1] != END):
        said.append(chooser.choose(tuple(read)))
        read.append(said[-1])
    return said
