"""The scheduler on a fake executor: policy in milliseconds, no numpy, no model."""

from dataclasses import dataclass, field

import pytest

from griffinlm.generation.request import Request
from griffinlm.generation.scheduler import PREFILL_CHUNK_TOKENS, Scheduler

END = 0


@dataclass
class FakeExecutor:
    """Its "logits" are what a slot has read; counts what is asked of it."""

    num_slots: int
    read: dict = field(default_factory=dict)
    steps: list = field(default_factory=list)
    prefills: list = field(default_factory=list)

    def __post_init__(self):
        self.read = {slot: [] for slot in range(self.num_slots)}

    def prefill(self, slots, tokens, positions, logits):
        assert positions is None
        (slot,) = slots
        self.prefills.append((slot, len(tokens)))
        self.read[slot] += tokens
        return None if logits == "none" else _Nested(list(self.read[slot]))

    def step(self, slots, tokens):
        assert len(set(slots)) == len(slots)
        self.steps.append(list(slots))
        for slot, token in zip(slots, tokens, strict=True):
            self.read[slot].append(token)
        return [list(self.read[slot]) for slot in slots]

    def export_state(self, slot):
        return {"read": list(self.read[slot])}

    def import_state(self, slot, arrays):
        self.read[slot] = list(arrays["read"])

    def release(self, slot):
        self.read[slot] = []


class _Nested:
    def __init__(self, value):
        self.value = value

    def __getitem__(self, index):
        assert index == (0, 0)
        return self.value


class CountDown:
    """Says 3, 2, 1 and the end token, from whatever number it is given."""

    def __init__(self, start):
        self.next = start

    def choose(self, logits):
        token, self.next = self.next, self.next - 1
        return token


def request(prompt, answers=3, max_tokens=100, state=None):
    return Request(list(prompt), CountDown(answers), max_tokens, frozenset({END}), state)


def run(scheduler):
    events = []
    while scheduler.busy:
        events += scheduler.step()
    return events


def of(events, wanted):
    return [event for event in events if event.request is wanted]


def test_an_answer_ends_with_its_end_token_and_gives_the_state_before_it():
    executor = FakeExecutor(1)
    scheduler, wanted = Scheduler(executor, list), request([7, 8])
    scheduler.submit(wanted)
    events = run(scheduler)
    assert [event.token for event in events] == [3, 2, 1, END]
    assert [event.finish_reason for event in events] == [None, None, None, "stop"]
    assert events[-1].state == {"read": [7, 8, 3, 2, 1]}
    assert executor.read == {0: []}


def test_max_tokens_ends_an_answer():
    scheduler, wanted = Scheduler(FakeExecutor(1), list), request([7], answers=50, max_tokens=4)
    scheduler.submit(wanted)
    events = run(scheduler)
    assert [event.token for event in events] == [50, 49, 48, 47]
    assert events[-1].finish_reason == "length"


def test_rows_leave_at_their_own_end_and_others_go_on():
    executor = FakeExecutor(2)
    scheduler, short, long = Scheduler(executor, list), request([7], 1), request([8], 4)
    scheduler.submit(short)
    scheduler.submit(long)
    events = run(scheduler)
    assert [event.token for event in of(events, short)] == [1, END]
    assert [event.token for event in of(events, long)] == [4, 3, 2, 1, END]
    assert executor.steps == [[0, 1], [1], [1], [1]]


def test_more_requests_than_slots_wait_in_order_and_find_clean_slots():
    executor = FakeExecutor(2)
    scheduler = Scheduler(executor, list)
    requests = [request([10 + i], answers=i + 1) for i in range(5)]
    for one in requests:
        scheduler.submit(one)
    events = run(scheduler)
    for i, one in enumerate(requests):
        assert of(events, one)[-1].state == {"read": [10 + i, *range(i + 1, 0, -1)]}
    first = [event.request for event in events]
    assert sorted(range(5), key=lambda i: first.index(requests[i])) == [0, 1, 2, 3, 4]


def test_long_prompts_are_read_in_chunks_while_others_keep_writing():
    executor = FakeExecutor(2)
    scheduler = Scheduler(executor, list)
    quick = request([7], answers=20)
    scheduler.submit(quick)
    scheduler.step()
    long = request(range(1, 2 * PREFILL_CHUNK_TOKENS + 2), answers=1)
    scheduler.submit(long)
    seen = [len(of(scheduler.step(), quick)) for _ in range(3)]
    assert seen == [1, 1, 1]
    assert executor.prefills[1:] == [(1, PREFILL_CHUNK_TOKENS), (1, PREFILL_CHUNK_TOKENS), (1, 1)]


def test_a_request_begins_where_its_state_stands():
    executor = FakeExecutor(1)
    scheduler, wanted = Scheduler(executor, list), request([9], 1, state={"read": [5, 6]})
    scheduler.submit(wanted)
    assert run(scheduler)[-1].state == {"read": [5, 6, 9, 1]}


def test_cancel_frees_the_slot_and_gives_the_state_without_the_last_token():
    executor = FakeExecutor(1)
    scheduler, wanted = Scheduler(executor, list), request([7], 9)
    scheduler.submit(wanted)
    scheduler.step()
    scheduler.step()
    assert scheduler.cancel(wanted) == {"read": [7, 9]}
    assert not scheduler.busy
    assert executor.read == {0: []}


def test_a_waiting_request_can_be_cancelled():
    scheduler = Scheduler(FakeExecutor(1), list)
    first, second = request([7], 2), request([8], 2)
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.step()
    assert scheduler.cancel(second) is None
    assert {event.request for event in run(scheduler)} == {first}


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        Scheduler(FakeExecutor(1), list).submit(request([]))
