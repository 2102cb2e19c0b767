"""The scheduler on a fake executor: policy in milliseconds, no numpy, no model."""

import dataclasses

import pytest
from fake_executor import END, POISON, Clock, FakeExecutor, babble, of, request, run, said_alone, tokens_of

from griffinlm.errors import GriffinError
from griffinlm.generation.pace import LEAST_CHUNK_TOKENS, WHOLE_CHUNK_TOKENS
from griffinlm.generation.queue import AGEING_SECONDS, QueueFullError, check_group
from griffinlm.generation.request import RequestError
from griffinlm.generation.scheduler import Scheduler


def scheduler_of(num_slots, **options):
    clock = Clock()
    executor = FakeExecutor(num_slots, clock)
    return Scheduler(executor, list, clock=clock, **options), executor


def begun(events):
    """Requests in the order of their first token."""
    return list(dict.fromkeys(event.request for event in events if event.token is not None))


def test_an_answer_ends_with_its_end_token_and_leaves_the_state_before_it():
    scheduler, executor = scheduler_of(1)
    scheduler.submit(request([7, 8]))
    events = run(scheduler)
    assert [event.token for event in events] == [3, 2, 1, END]
    assert [event.finish_reason for event in events] == [None, None, None, "stop"]
    remainder = events[-1].remainder
    assert (remainder.state, remainder.unread, remainder.num_written) == ({"read": [7, 8, 3, 2, 1]}, [END], 4)
    assert executor.read == {0: []}


def test_max_tokens_ends_an_answer():
    scheduler, _ = scheduler_of(1)
    scheduler.submit(request([7], answers=50, max_tokens=4))
    events = run(scheduler)
    assert [event.token for event in events] == [50, 49, 48, 47]
    assert events[-1].finish_reason == "length"


def test_rows_leave_at_their_own_end_and_others_go_on():
    scheduler, executor = scheduler_of(2)
    short, long = request([7], 1), request([8], 4)
    scheduler.submit(short)
    scheduler.submit(long)
    events = run(scheduler)
    assert tokens_of(events, short) == [1, END]
    assert tokens_of(events, long) == [4, 3, 2, 1, END]
    assert executor.steps == [[0, 1], [1], [1], [1]]


def test_more_requests_than_slots_wait_in_order_and_find_clean_slots():
    scheduler, _ = scheduler_of(2)
    requests = [request([10 + i], answers=i + 1) for i in range(5)]
    for one in requests:
        scheduler.submit(one)
    events = run(scheduler)
    for i, one in enumerate(requests):
        assert of(events, one)[-1].remainder.state == {"read": [10 + i, *range(i + 1, 0, -1)]}
    assert begun(events) == requests


def test_a_request_joins_in_the_lowest_free_slot():
    scheduler, executor = scheduler_of(3)
    requests = [request([7], answers) for answers in (9, 1, 9)]
    for one in requests:
        scheduler.submit(one)
    while scheduler.num_free_slots != 1:
        scheduler.step()
    scheduler.submit(request([8], 2))
    scheduler.step()
    scheduler.step()
    assert executor.prefills[-1] == (1, 1)
    assert executor.steps[-1] == [0, 2, 1]


def test_a_request_begins_where_its_state_stands():
    scheduler, _ = scheduler_of(1)
    scheduler.submit(request([9], 1, state={"read": [5, 6]}))
    assert run(scheduler)[-1].remainder.state == {"read": [5, 6, 9, 1]}


def test_prompts_alone_are_read_in_whole_chunks_in_turn():
    scheduler, executor = scheduler_of(2)
    scheduler.submit(request(range(1, 2 * WHOLE_CHUNK_TOKENS + 2)))
    scheduler.submit(request(range(1, WHOLE_CHUNK_TOKENS + 2)))
    expected = [(0, WHOLE_CHUNK_TOKENS), (1, WHOLE_CHUNK_TOKENS), (0, WHOLE_CHUNK_TOKENS), (1, 1)]
    for num_steps in range(1, 5):
        scheduler.step()
        assert executor.prefills == expected[:num_steps]


def test_prompts_of_one_length_are_written_behind_together():
    scheduler, executor = scheduler_of(4)
    for slot in range(4):
        scheduler.submit(request([slot + 1] * (WHOLE_CHUNK_TOKENS + 20), answers=2))
    run(scheduler)
    assert [tokens for _, tokens in executor.prefills] == [WHOLE_CHUNK_TOKENS] * 4 + [20] * 4
    assert executor.steps == [[0, 1, 2, 3]] * 2


def test_between_two_chunks_others_come_and_go():
    scheduler, executor = scheduler_of(4)
    first, second, third = (request([slot + 1] * 2 * WHOLE_CHUNK_TOKENS, answers=1) for slot in range(3))
    for one in (first, second, third):
        scheduler.submit(one)
    scheduler.step()
    assert scheduler.cancel(second).unread == second.prompt
    newcomer = request([9], answers=1)
    scheduler.submit(newcomer)
    while newcomer not in begun(scheduler.step()):
        pass
    # The round that it found under way, then those who had their last turn before it came.
    assert executor.prefills == [(0, WHOLE_CHUNK_TOKENS), (2, WHOLE_CHUNK_TOKENS), (0, WHOLE_CHUNK_TOKENS), (1, 1)]
    run(scheduler)
    assert executor.prefills[4:] == [(2, WHOLE_CHUNK_TOKENS)]


def test_an_urgent_prompt_is_read_before_the_others_of_its_round():
    scheduler, executor = scheduler_of(3)
    for priority in (0, 0, 1):
        scheduler.submit(request([5] * 2 * WHOLE_CHUNK_TOKENS, priority=priority, answers=1))
    run(scheduler)
    assert [slot for slot, _ in executor.prefills] == [0, 1, 2] * 2


def test_every_step_gives_a_token_to_those_that_write_while_a_prompt_is_read():
    scheduler, executor = scheduler_of(2)
    quick = request([7], answers=80)
    scheduler.submit(quick)
    scheduler.step()
    scheduler.submit(request([5] * 100, answers=1))
    while sum(tokens for slot, tokens in executor.prefills if slot == 1) < 100:
        before = len(executor.prefills)
        assert len(of(scheduler.step(), quick)) == 1
        assert len(executor.prefills) == before + 1


def test_prompts_take_turns_while_others_write():
    scheduler, executor = scheduler_of(3)
    scheduler.submit(request([7], answers=100))
    scheduler.step()
    executor.clock.now += 1
    scheduler.submit(request([1] * 20))
    scheduler.submit(request([2] * 20))
    executor.token_seconds = 1e-3
    for _ in range(4):
        scheduler.step()
    assert [slot for slot, _ in executor.prefills[1:]] == [1, 2, 1, 2]


def test_an_urgent_prompt_is_read_first_and_the_other_has_its_turn_in_time():
    scheduler, executor = scheduler_of(3)
    scheduler.submit(request([7], answers=10_000, max_tokens=10_000))
    scheduler.step()
    executor.token_seconds = AGEING_SECONDS / 20
    scheduler.submit(request([1] * 400))
    scheduler.submit(request([2] * 400, priority=1))
    for _ in range(60):
        scheduler.step()
    slots = [slot for slot, _ in executor.prefills[1:]]
    # The urgent prompt found its slot first.
    assert slots.count(1) > slots.count(2) > 2


def test_higher_priority_begins_first_and_equals_in_order_of_arrival():
    scheduler, _ = scheduler_of(1)
    requests = [request([7], 1, priority=priority) for priority in (0, 2, 1, 2, 0)]
    for one in requests:
        scheduler.submit(one)
    order = [requests.index(one) for one in begun(run(scheduler))]
    assert order == [1, 3, 2, 0, 4]


def test_a_stream_of_urgent_requests_starves_nobody():
    scheduler, executor = scheduler_of(1)
    executor.call_seconds = 1.0
    humble = request([7], 1)
    scheduler.submit(humble)
    for _ in range(20):
        scheduler.submit(request([8], 1, priority=3))
        if of([event for _ in range(2) for event in scheduler.step()], humble):
            break
    else:
        pytest.fail("the request of low priority never began")
    assert 3 * AGEING_SECONDS <= executor.clock.now <= 3 * AGEING_SECONDS + 4


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 40])
def test_cancelled_and_resumed_equals_uninterrupted(num_steps):
    prompt, max_tokens = [5] * 21, 30
    scheduler, executor = scheduler_of(2)
    scheduler.submit(request([7], answers=1000, max_tokens=1000))
    scheduler.step()
    wanted = babble(prompt, 3, max_tokens, {"read": [9]})
    scheduler.submit(wanted)
    said = tokens_of([event for _ in range(num_steps) for event in scheduler.step()], wanted)
    remainder = scheduler.cancel(wanted)
    if remainder is not None:
        assert executor.read[1] == []
        assert remainder.num_written == len(said)
        again = wanted.resumed(remainder)
        other, _ = scheduler_of(1)
        other.submit(again)
        said += tokens_of(run(other), again)
    assert said == said_alone(prompt, 3, max_tokens, [9])


def test_a_waiting_request_that_is_cancelled_leaves_what_it_came_with():
    scheduler, _ = scheduler_of(1)
    first, second = request([7], 2), request([8, 9], 2, state={"read": [5]})
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.step()
    remainder = scheduler.cancel(second)
    assert (remainder.state, remainder.unread, remainder.num_written) == ({"read": [5]}, [8, 9], 0)
    assert {event.request for event in run(scheduler)} == {first}


def test_what_has_ended_cannot_be_cancelled():
    scheduler, _ = scheduler_of(1)
    wanted = request([7], 1)
    scheduler.submit(wanted)
    run(scheduler)
    assert scheduler.cancel(wanted) is None


@pytest.mark.parametrize("seconds", [0.0, 3.5, 25.5, 60.0])
def test_a_deadline_ends_a_request_wherever_it_stands_with_its_state(seconds):
    prompt = [5] * 30
    scheduler, executor = scheduler_of(2)
    executor.call_seconds = 1.0
    scheduler.submit(request([7], answers=1000, max_tokens=1000))
    scheduler.step()
    wanted = babble(prompt, 1, 200, timeout_seconds=seconds)
    scheduler.submit(wanted)
    start, events = executor.clock.now, []
    while not events or events[-1].finish_reason is None:
        events += of(scheduler.step(), wanted)
        assert executor.clock.now <= start + seconds + 2 * executor.call_seconds
    assert (events[-1].token, events[-1].finish_reason) == (None, "deadline")
    remainder, said = events[-1].remainder, tokens_of(events, wanted)
    read = [] if remainder.state is None else remainder.state["read"]
    assert read + remainder.unread == prompt + said
    assert said == said_alone(prompt, 1, len(said))
    assert executor.read[1] == []


def test_a_deadline_ends_a_request_that_waits():
    scheduler, executor = scheduler_of(1)
    executor.call_seconds = 1.0
    wanted = request([8], timeout_seconds=2.5)
    scheduler.submit(request([7], answers=10))
    scheduler.submit(wanted)
    (event,) = of(run(scheduler), wanted)
    assert (event.finish_reason, event.remainder.state, event.remainder.unread) == ("deadline", None, [8])


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_answers_to_one_prompt_equal_each_alone_from_one_reading(num_slots):
    scheduler, executor = scheduler_of(num_slots)
    prompt, state = [5, 6, 7], {"read": [4]}
    group = [babble(prompt, seed, 20, state) for seed in range(5)]
    scheduler.submit_group(group)
    events = run(scheduler)
    assert executor.prefills == [(0, 3)]
    for seed, one in enumerate(group):
        assert tokens_of(events, one) == said_alone(prompt, seed, 20, [4])
    assert scheduler.num_free_slots == num_slots


def test_those_that_share_a_read_prompt_come_before_later_arrivals():
    scheduler, _ = scheduler_of(1)
    group, later = [request([7], 1) for _ in range(3)], request([8], 1)
    scheduler.submit_group(group)
    scheduler.submit(later)
    assert begun(run(scheduler)) == [*group, later]


def test_one_shared_prompt_at_a_time_holds_a_state_beside_the_slots():
    scheduler, _ = scheduler_of(2)
    groups = [[babble([i], seed, 4) for seed in range(3)] for i in range(3)]
    for group in groups:
        scheduler.submit_group(group)
    while scheduler.busy:
        scheduler.step()
        assert sum(group.read_prompt is not None for group in scheduler._waiting) <= 1


def test_cancelling_one_of_a_group_leaves_the_others():
    scheduler, executor = scheduler_of(2)
    group = [babble([5] * (WHOLE_CHUNK_TOKENS + 1), seed, 9) for seed in range(4)]
    scheduler.submit_group(group)
    assert scheduler.cancel(group[3]).state is None
    scheduler.step()
    read = scheduler.cancel(group[0])
    assert (read.state["read"], read.unread) == ([5] * WHOLE_CHUNK_TOKENS, [5])
    events = run(scheduler)
    for seed in (1, 2):
        assert tokens_of(events, group[seed]) == said_alone(group[0].prompt, seed, 9)
    assert len(executor.prefills) == 2
    assert {event.request for event in events} == set(group[1:3])


def test_a_fault_of_one_request_ends_it_alone():
    class Broken:
        def choose(self, logits):
            raise ZeroDivisionError

    scheduler, executor = scheduler_of(4)
    good, poisoned, foreign = babble([5], 1, 20), babble([POISON], 2), babble([6], 3, state={"read": [POISON]})
    broken, late = request([7]), request([8], answers=POISON)
    object.__setattr__(broken, "chooser", Broken())
    for one in (good, poisoned, foreign, broken, late):
        scheduler.submit(one)
    events = run(scheduler)
    assert tokens_of(events, good) == said_alone([5], 1, 20)
    for one, error in ((poisoned, GriffinError), (foreign, GriffinError), (broken, ZeroDivisionError)):
        (event,) = of(events, one)
        assert (event.token, event.finish_reason) == (None, "error")
        assert isinstance(event.error, error)
    assert [event.finish_reason for event in of(events, late)] == [None, "error"]
    assert executor.read == {slot: [] for slot in range(4)}
    assert scheduler.num_free_slots == 4


def test_a_full_queue_says_when_a_slot_will_be_free():
    scheduler, executor = scheduler_of(2, max_waiting=1)
    executor.call_seconds = 0.5
    for max_tokens in (30, 11):
        scheduler.submit(request([7], answers=100, max_tokens=max_tokens))
    for _ in range(4):
        scheduler.step()
    scheduler.submit(request([8]))
    refused = request([9])
    with pytest.raises(QueueFullError, match=r"1 of 1 places .* free in 4\.0 s") as full:
        scheduler.submit(refused)
    assert full.value.seconds == pytest.approx((11 - 3) * 0.5)
    start = executor.clock.now
    while of(scheduler.step(), refused) or not scheduler.num_free_slots:
        pass
    assert executor.clock.now - start == pytest.approx(full.value.seconds)
    scheduler.submit(refused)


def test_a_deadline_bounds_the_expected_time():
    scheduler, executor = scheduler_of(1, max_waiting=0)
    executor.call_seconds = 0.5
    scheduler.submit(request([7], answers=100, timeout_seconds=3.0))
    scheduler.step()
    scheduler.step()
    assert scheduler.expected_seconds() == pytest.approx(3.0 - executor.clock.now)


def test_a_full_queue_that_has_measured_nothing_says_so():
    scheduler, _ = scheduler_of(1, max_waiting=0)
    scheduler.submit(request([7]))
    for _ in range(2):
        with pytest.raises(QueueFullError, match="not yet known when") as full:
            scheduler.submit(request([8]))
        assert full.value.seconds is None
        scheduler.step()


def test_what_cannot_be_taken_is_refused_whole():
    scheduler, _ = scheduler_of(2, max_waiting=1)
    one = request([7])
    scheduler.submit(one)
    for wrong, words in (
        ([request([])], "no tokens"),
        ([request([7], max_tokens=-1)], "max_tokens is -1"),
        ([one], "submitted twice"),
        ([], "no requests"),
        ([request([7]), request([8])], "differ in prompt"),
        ([request([7]), request([7], priority=1)], "differ in priority; they must have the same prompt, state, find"),
        ([request([7]), request([8], state={"read": []})], "differ in prompt, state;"),
        ([request([7]), request([7], adapter="other")], "differ in adapter;"),
        ([request([7]), request([7], find_start=lambda: None)], "differ in find_start;"),
        ([request([7]) for _ in range(4)], "4 answers are asked for at once; at most 3"),
    ):
        with pytest.raises(RequestError, match=words):
            scheduler.submit_group(wrong)
    with pytest.raises(QueueFullError):
        scheduler.submit_group([request([7]) for _ in range(3)])
    assert {event.request for event in run(scheduler)} == {one}


def test_a_prompt_that_requests_share_is_not_compared_with_itself():
    class Prompt(list):
        def __eq__(self, other):
            pytest.fail("a prompt was compared")

        __hash__ = None

    one = request([])
    object.__setattr__(one, "prompt", Prompt([7]))
    check_group([one, dataclasses.replace(one), dataclasses.replace(one)])


def test_a_prompt_is_read_on_however_dear_it_is():
    scheduler, executor = scheduler_of(2)
    scheduler.submit(request([7], answers=100))
    scheduler.step()
    executor.token_seconds = 1.0
    scheduler.submit(request([5] * 13))
    for _ in range(4):
        scheduler.step()
    assert executor.prefills[1:] == [(1, LEAST_CHUNK_TOKENS)] * 3 + [(1, 1)]
