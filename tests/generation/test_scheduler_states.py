"""States that come and go while the scheduler runs: starts found later, places handed over, room that must be had."""

import pytest
from fake_executor import END, Clock, FakeExecutor, babble, of, request, run, said_alone, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.errors import GriffinError
from griffinlm.generation.pace import WHOLE_CHUNK_TOKENS
from griffinlm.generation.request import Start, StateEvent, TokenEvent
from griffinlm.generation.scheduler import Scheduler

PROMPT = [5, 6, 7, 8, 9, 10, 11]


class Places:
    """Says yes as often as there are places."""

    def __init__(self, num_places):
        self.num_free = num_places

    def __call__(self):
        if not self.num_free:
            return False
        self.num_free -= 1
        return True


def scheduler_of(num_slots, **options):
    clock = Clock()
    executor = FakeExecutor(num_slots, clock)
    return Scheduler(executor, list, clock=clock, **options), executor


def starting(start, **options):
    """A request that finds its start at once."""
    return babble([1], 3, 12, find_start=lambda: start, **options)


def states(events):
    return [(event.num_read, event.state["read"]) for event in events if isinstance(event, StateEvent)]


def tokens(events):
    return [event for event in events if isinstance(event, TokenEvent)]


@given(places=st.sets(st.integers(0, 7)), num_read=st.integers(0, 6), num_slots=st.integers(1, 2))
def test_states_are_handed_over_at_their_places_and_the_answer_is_the_same(places, num_read, num_slots):
    places = tuple(sorted(place for place in places if place >= num_read and (place < 7 or num_read < 7)))
    scheduler, executor = scheduler_of(num_slots)
    state = {"read": PROMPT[:num_read]} if num_read else None
    wanted = starting(Start(PROMPT, state, num_read, places))
    scheduler.submit(wanted)
    events = run(scheduler)
    assert states(events) == [(place, PROMPT[:place]) for place in places]
    assert tokens_of(tokens(events), wanted) == said_alone(PROMPT, 3, 12)
    assert sum(tokens for _, tokens in executor.prefills) == len(PROMPT) - num_read


def test_a_start_that_is_not_known_yet_keeps_the_slot_and_holds_up_nobody():
    scheduler, _ = scheduler_of(2)
    known = []
    late = babble([1], 3, 12, find_start=lambda: known[0] if known else None)
    scheduler.submit(late)
    scheduler.submit(request([7], answers=100))
    events = [event for _ in range(5) for event in scheduler.step()]
    assert not of(events, late)
    assert len(events) == 5
    assert scheduler.num_free_slots == 0
    known.append(Start(PROMPT, {"read": PROMPT[:4]}, 4))
    events = run(scheduler)
    assert tokens_of(events, late) == said_alone(PROMPT, 3, 12)


def test_a_start_that_cannot_be_found_ends_the_request_alone():
    def fail():
        raise GriffinError("gone")

    scheduler, executor = scheduler_of(2)
    lost, other = babble([1], find_start=fail), babble([2], 1, 5)
    scheduler.submit(lost)
    scheduler.submit(other)
    events = run(scheduler)
    (event,) = of(events, lost)
    assert (event.finish_reason, str(event.error)) == ("error", "gone")
    assert tokens_of(events, other) == said_alone([2], 1, 5)
    assert executor.read == {0: [], 1: []}


@pytest.mark.parametrize("max_tokens", [1, 4])
def test_a_state_waits_in_its_slot_until_it_may_leave(max_tokens):
    places = Places(1)
    scheduler, executor = scheduler_of(1, may_leave=places)
    wanted = babble([], 3, max_tokens, find_start=lambda: Start(PROMPT, None, 0, (3, 6)))
    scheduler.submit(wanted)
    assert states(scheduler.step()) == [(3, PROMPT[:3])]
    for _ in range(3):
        assert scheduler.step() == []
    assert executor.read[0] == PROMPT[:6]
    places.num_free = 1
    events = scheduler.step()
    assert states(events) == [(6, PROMPT[:6])]
    for _ in range(10):
        events += scheduler.step()
    assert tokens_of(tokens(events), wanted) == said_alone(PROMPT, 3, max_tokens)
    assert tokens(events)[-1].finish_reason is None
    assert scheduler.has_ended(wanted)
    assert scheduler.num_free_slots == 0
    places.num_free = 1
    (last,) = scheduler.step()
    assert (last.token, last.finish_reason) == (None, "length")
    assert last.remainder.state["read"] == PROMPT + said_alone(PROMPT, 3, max_tokens)[:-1]
    assert scheduler.num_free_slots == 1


def test_others_write_while_a_state_waits():
    scheduler, _ = scheduler_of(2, may_leave=lambda: False)
    held, other = babble([3], 1, 2), babble([4], 2, 30, wants_state=False)
    scheduler.submit(held)
    scheduler.submit(other)
    events = [event for _ in range(40) for event in scheduler.step()]
    assert tokens_of(events, other) == said_alone([4], 2, 30)
    assert of(events, other)[-1].remainder.state is None
    assert [event.finish_reason for event in of(events, held)] == [None, None]
    assert scheduler.cancel(held).state is not None
    assert not scheduler.busy


def test_a_held_answer_that_is_late_keeps_its_own_reason():
    places = Places(0)
    scheduler, executor = scheduler_of(1, may_leave=places)
    wanted = babble([3], 1, 1, timeout_seconds=5.0)
    scheduler.submit(wanted)
    scheduler.step()
    executor.clock.now = 9.0
    assert scheduler.step() == []
    places.num_free = 1
    (event,) = scheduler.step()
    assert event.finish_reason == "length"


def test_a_late_prompt_that_may_not_leave_ends_without_its_state():
    scheduler, executor = scheduler_of(1, may_leave=lambda: False)
    wanted = babble([3] * (WHOLE_CHUNK_TOKENS + 2), 1, timeout_seconds=5.0)
    scheduler.submit(wanted)
    scheduler.step()
    executor.clock.now = 9.0
    (event,) = scheduler.step()
    assert (event.finish_reason, event.remainder.state) == ("deadline", None)
    assert scheduler.num_free_slots == 1


def test_nothing_to_write_reads_the_prompt_and_ends():
    scheduler, executor = scheduler_of(1)
    wanted = babble([], 3, 0, find_start=lambda: Start(PROMPT, None, 0, (2, 7)))
    scheduler.submit(wanted)
    *handed, last = run(scheduler)
    assert states(handed) == [(2, PROMPT[:2]), (7, PROMPT)]
    assert (last.token, last.finish_reason) == (None, "length")
    assert scheduler.num_free_slots == 1
    assert executor.read == {0: []}


def test_a_place_where_the_reading_begins_is_handed_over_without_reading():
    scheduler, executor = scheduler_of(1)
    scheduler.submit(babble([], 3, 0, find_start=lambda: Start(PROMPT, {"read": PROMPT}, 7, (7,))))
    assert states(scheduler.step()) == [(7, PROMPT)]
    assert executor.prefills == []


class Scores:
    max_chunk_tokens = 3

    def __init__(self):
        self.seen = []

    def score(self, first, logits):
        self.seen.append((first, logits[0, -1]))


def test_a_scored_prompt_is_read_in_small_chunks_with_all_its_logits():
    scheduler, _ = scheduler_of(1)
    scores = Scores()
    wanted = babble(PROMPT, 3, 5, scorer=scores)
    scheduler.submit(wanted)
    events = run(scheduler)
    assert scores.seen == [(0, tuple(PROMPT[:3])), (3, tuple(PROMPT[:6])), (6, tuple(PROMPT))]
    assert tokens_of(events, wanted) == said_alone(PROMPT, 3, 5)


def test_every_row_has_its_adapter_from_its_first_token_to_its_last():
    scheduler, executor = scheduler_of(3)
    plain, *group = babble([4], 0, 4), *(babble([5], seed, 6, adapter="a") for seed in range(3))
    seen = {}
    step = executor.step

    def watched(slots, tokens):
        for slot in slots:
            seen.setdefault(executor.read[slot][0], set()).add(executor.adapters.get(slot))
        return step(slots, tokens)

    executor.step = watched
    scheduler.submit(plain)
    scheduler.submit_group(group)
    run(scheduler)
    assert seen == {4: {None}, 5: {"a"}}
    assert executor.adapters == {}


def test_a_copy_of_a_state_is_that_of_all_tokens_but_the_last():
    scheduler, _ = scheduler_of(1)
    wanted = babble([3], 1, 9)
    scheduler.submit(wanted)
    said = tokens_of([event for _ in range(4) for event in scheduler.step()], wanted)
    assert END not in said
    assert scheduler.copy_state(wanted) == {"read": [3, *said[:-1]]}
    assert tokens_of(run(scheduler), wanted) == said_alone([3], 1, 9)[4:]
