"""Prompts are read at the pace of those that write: with any machine's costs, on a clock that only they move."""

import random
import statistics
from itertools import pairwise

import pytest
from fake_executor import Clock, FakeExecutor, of, request

from griffinlm.generation.pace import CHUNK_COST_STEPS, LEAST_CHUNK_TOKENS, WHOLE_CHUNK_TOKENS, Pace
from griffinlm.generation.scheduler import Scheduler

COSTS = {
    "a processor: tokens cost as much as rows": (0.010, 0.010),
    "an accelerator: calls cost more than tokens": (0.020, 0.00001),
    "slow at everything": (1.0, 0.2),
    "tokens alone cost": (0.0, 0.001),
}


class NoisyExecutor(FakeExecutor):
    """Calls cost up to a fifth more by chance, and one in five hundred four times as much."""

    def __post_init__(self):
        super().__post_init__()
        self.random = random.Random(0)

    def prefill(self, *arguments):
        return self._noisy(super().prefill, *arguments)

    def step(self, *arguments):
        return self._noisy(super().step, *arguments)

    def _noisy(self, call, *arguments):
        start = self.clock.now
        out = call(*arguments)
        factor = 3.0 if self.random.random() < 0.002 else self.random.uniform(0, 0.2)
        self.clock.now += factor * (self.clock.now - start)
        return out


def gaps_while_reading(executor, num_writing, num_prompt_tokens, num_steps_before=50):
    """Seconds between the tokens of a row that writes, from before a long prompt comes until it is read."""
    scheduler = Scheduler(executor, list, clock=executor.clock)
    watched, *others = [request([7], answers=10**6, max_tokens=10**6) for _ in range(num_writing)]
    for one in (watched, *others):
        scheduler.submit(one)
    for _ in range(num_writing):
        scheduler.step()
    long = request([5] * num_prompt_tokens)
    times, num_steps = [executor.clock.now], 0
    while True:
        if num_steps == num_steps_before:
            scheduler.submit(long)
        events = scheduler.step()
        num_steps += 1
        assert len(of(events, watched)) == 1
        times.append(executor.clock.now)
        if of(events, long):
            return [after - before for before, after in pairwise(times)]


@pytest.mark.parametrize("num_writing", [1, 3, 7])
@pytest.mark.parametrize("executor_class", [FakeExecutor, NoisyExecutor])
@pytest.mark.parametrize("costs", COSTS, ids=str)
def test_the_99th_percentile_between_tokens_stays_under_three_medians(costs, executor_class, num_writing):
    executor = executor_class(num_writing + 1, Clock(), *COSTS[costs])
    # Long enough before the prompt for one slow call to be less than one in a hundred.
    gaps = gaps_while_reading(executor, num_writing, 4000, num_steps_before=200)
    assert statistics.quantiles(gaps, n=100, method="inclusive")[98] < 3 * statistics.median(gaps)
    undisturbed = statistics.median(gaps[:200])
    allowed = (1 + CHUNK_COST_STEPS) * 1.2 if executor_class is NoisyExecutor else 1 + CHUNK_COST_STEPS
    least = executor.call_seconds + LEAST_CHUNK_TOKENS * executor.token_seconds
    assert statistics.median(gaps[200:]) <= max(allowed * undisturbed, undisturbed + 1.3 * least) * 1.05


def test_a_long_prompt_waits_no_longer_than_the_pace_demands():
    executor = FakeExecutor(8, Clock(), 0.0, 0.001)
    gaps = gaps_while_reading(executor, 7, 4000)
    chunks = len(gaps) - 50
    assert chunks <= 1.1 * 4000 / (7 * CHUNK_COST_STEPS)


def test_chunks_grow_to_the_whole_where_tokens_cost_nothing():
    executor = FakeExecutor(2, Clock(), 0.020, 0.0)
    gaps_while_reading(executor, 1, 50_000)
    assert max(tokens for _, tokens in executor.prefills) == WHOLE_CHUNK_TOKENS


def test_nothing_measured_means_the_least():
    pace = Pace()
    assert (pace.chunk_tokens, pace.step_seconds, pace.round_seconds(True)) == (LEAST_CHUNK_TOKENS, None, None)
    pace.read_chunk(1.0)
    assert pace.chunk_tokens == LEAST_CHUNK_TOKENS


def test_a_chunk_changes_by_a_factor_of_two_at_most_and_within_its_bounds():
    pace = Pace()
    pace.stepped(1.0)
    for seconds in (0.0, 1e-9, 1e9, 1e-9, *[1e-9] * 20, *[1e9] * 20):
        before = pace.chunk_tokens
        pace.read_chunk(seconds)
        assert before // 2 <= pace.chunk_tokens <= 2 * before
        assert LEAST_CHUNK_TOKENS <= pace.chunk_tokens <= WHOLE_CHUNK_TOKENS


def test_one_slow_step_does_not_change_what_a_step_costs():
    pace = Pace()
    for seconds in (1.0, 1.0, 50.0):
        pace.stepped(seconds)
    assert pace.step_seconds == 1.0
    assert pace.round_seconds(False) == 1.0
    assert pace.round_seconds(True) == 1.0 + CHUNK_COST_STEPS


def test_short_prompts_teach_nothing_about_long_ones():
    executor = FakeExecutor(2, Clock(), 0.0, 0.001)
    scheduler = Scheduler(executor, list, clock=executor.clock)
    scheduler.submit(request([7], answers=10**6, max_tokens=10**6))
    scheduler.step()
    for _ in range(20):
        scheduler.submit(request([8], max_tokens=1))
        scheduler.step()
    scheduler.submit(request([9] * 600))
    scheduler.step()
    assert executor.prefills[-1] == (1, LEAST_CHUNK_TOKENS)
