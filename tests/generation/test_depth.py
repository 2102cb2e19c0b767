"""Depth-wise batching on an executor without a model: the schedule, its order, and what ends a row.

The traces are those of the figure that Relaxed Recursive Transformers (arXiv 2410.20672) explains its batching with:
32 places, three loops, one token a request, of which 16, 32 and 8 arrive.
"""

import pytest
from fake_executor import END, POISON, FakeLoops, babble, said_alone, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.generation.depth import DepthScheduler
from griffinlm.generation.request import RequestError

ARRIVALS = {1: 16, 2: 32, 3: 8}
BATCHINGS = ("depth", "sequence", "lock_step")


def scheduler_of(num_slots, exits=None, batching="depth", num_loops=3):
    executor = FakeLoops(num_slots, exits=exits, num_loops=num_loops)
    return DepthScheduler(executor, list, batching), executor


def trace(batching, early=frozenset()):
    """Rows in each loop at t = 1, 2, ...; the requests numbered in `early`, in order of arrival, leave after two."""
    scheduler, _ = scheduler_of(32, lambda read: 2 if read[0] in early else 3, batching)
    found, num_arrived, t = [], 0, 0
    while t < max(ARRIVALS) or scheduler.busy:
        t += 1
        for _ in range(ARRIVALS.get(t, 0)):
            scheduler.submit(babble([num_arrived], max_tokens=1))
            num_arrived += 1
        scheduler.step()
        found.append(tuple(scheduler.num_rows_by_loop))
    return found


def test_whole_batches_follow_the_schedule_of_the_figure():
    batches = [(16, 0, 0), (32, 0, 0), (8, 0, 0)]
    assert trace("lock_step") == [batch[-shift:] + batch[:-shift] for batch in batches for shift in (0, 1, 2)]


def test_depth_wise_batching_follows_the_schedule_of_the_figure():
    assert trace("depth") == [
        *[(16, 0, 0), (16, 16, 0), (0, 16, 16), (16, 0, 16)],
        *[(8, 16, 0), (0, 8, 16), (0, 0, 8)],
    ]


def test_depth_wise_batching_with_exits_follows_the_schedule_of_the_figure():
    # Of the first two groups that end their second loop, half leave.
    early = frozenset(range(8)) | frozenset(range(16, 24))
    assert trace("depth", early) == [
        *[(16, 0, 0), (16, 16, 0), (8, 16, 8)],
        *[(16, 8, 8), (0, 16, 8), (0, 0, 16)],
    ]


def test_rows_that_keep_to_one_token_are_refilled_between_tokens_only():
    scheduler, _ = scheduler_of(2, lambda read: 1 if read[0] == 7 else 3, "sequence")
    scheduler.submit(babble([7], max_tokens=1))
    scheduler.submit(babble([8], max_tokens=2))
    scheduler.submit(babble([9], max_tokens=1))
    rows = []
    while scheduler.busy:
        scheduler.step()
        rows.append(tuple(scheduler.num_rows_by_loop))
    assert rows == [(2, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0), (0, 2, 0), (0, 0, 2)]


@pytest.mark.parametrize("batching", BATCHINGS)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 5)), min_size=1
    ),
    st.integers(1, 4),
    st.integers(1, 4),
)
def test_every_request_says_what_it_says_alone_in_whatever_company(batching, given_requests, num_slots, num_loops):
    scheduler, executor = scheduler_of(num_slots, lambda read: 1 + sum(read) % num_loops, batching, num_loops)
    left = [(babble(prompt, i, most), wait) for i, (prompt, most, wait) in enumerate(given_requests)]
    requests, events, begun = [request for request, _ in left], [], []
    while left or scheduler.busy:
        while left and left[0][1] <= 0:
            scheduler.submit(left.pop(0)[0])
        left = [(request, wait - 1) for request, wait in left]
        events += scheduler.step()
        assert sum(scheduler.num_rows_by_loop) <= num_slots
        begun += [one for one in scheduler._rows if one not in begun]
    for i, (prompt, most, _) in enumerate(given_requests):
        assert tokens_of(events, requests[i]) == said_alone(prompt, i, most)
    assert begun == sorted(begun, key=requests.index), "slots go out in order of arrival"
    assert not executor.depth
    assert not any(executor.read.values())


def test_no_loop_runs_with_less_rows_than_there_are_while_requests_wait():
    scheduler, executor = scheduler_of(4, lambda read: 1 + len(read) % 3)
    for i in range(40):
        scheduler.submit(babble([i + 1], i, max_tokens=5))
    while scheduler.busy:
        is_full = len(scheduler._waiting) >= 4
        scheduler.step()
        assert not is_full or executor.num_rows[-1] == 4


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 4, 7])
def test_a_cancelled_request_leaves_nothing_in_its_slot_and_the_others_alone(num_steps):
    scheduler, executor = scheduler_of(2)
    one, other = babble([1], 3, max_tokens=9), babble([2], 4, max_tokens=9)
    scheduler.submit(one)
    scheduler.submit(other)
    events = [event for _ in range(num_steps) for event in scheduler.step()]
    scheduler.cancel(one)
    scheduler.cancel(one)
    while scheduler.busy:
        events += scheduler.step()
    assert tokens_of(events, other) == said_alone([2], 4, 9)
    assert not executor.depth
    assert not any(executor.read.values())


def test_a_fault_ends_its_request_alone():
    scheduler, _ = scheduler_of(2)
    bad, good = babble([5, POISON, 3]), babble([2], 4, max_tokens=3)
    scheduler.submit(bad)
    scheduler.submit(good)
    events = []
    while scheduler.busy:
        events += scheduler.step()
    assert [event.finish_reason for event in events if event.request is bad] == ["error"]
    assert tokens_of(events, good) == said_alone([2], 4, 3)


def test_the_last_token_is_unread_in_what_a_request_leaves():
    scheduler, _ = scheduler_of(1)
    scheduler.submit(babble([2], 4, max_tokens=3))
    events = []
    while scheduler.busy:
        events += scheduler.step()
    said = said_alone([2], 4, 3)
    last = events[-1]
    assert last.finish_reason == ("stop" if said[-1] == END else "length")
    assert last.remainder.state == {"read": [2, *said[:-1]]}
    assert last.remainder.unread == said[-1:]


def test_what_it_cannot_do_is_refused():
    scheduler, _ = scheduler_of(1)
    with pytest.raises(RequestError, match="batching is 'wide'; allowed are depth, sequence, lock_step"):
        DepthScheduler(FakeLoops(1), list, "wide")
    with pytest.raises(RequestError, match="max_tokens is 0"):
        scheduler.submit(babble([1], max_tokens=0))
    with pytest.raises(RequestError, match="has a timeout_seconds"):
        scheduler.submit(babble([1], timeout_seconds=1.0))
    one = babble([1])
    scheduler.submit(one)
    with pytest.raises(RequestError, match="submitted twice"):
        scheduler.submit(one)
