"""Real executors under random traffic: every answer is the one written alone, and so is the state it leaves."""

from pathlib import Path

import numpy as np
import pytest
from fake_executor import Clock
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_agree

import griffinlm
from griffinlm.executor import ExecutorError
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.request import Request
from griffinlm.generation.sampling import Sampler, choose_together
from griffinlm.generation.scheduler import Scheduler
from griffinlm.state import state_layout

NUM_SLOTS = 3
MAX_TOKENS = 12
END_IDS = frozenset(range(8))
CAPACITY = 128


class TimedExecutor:
    """An executor whose calls take a fixed time for every token on a clock of their own."""

    def __init__(self, executor, clock):
        self._executor, self._clock = executor, clock
        self.num_slots = executor.num_slots

    def prefill(self, slots, tokens, positions, logits):
        self._clock.now += 0.001 * tokens.size
        return self._executor.prefill(slots, tokens, positions, logits)

    def step(self, slots, tokens):
        self._clock.now += 0.001 * len(tokens)
        return self._executor.step(slots, tokens)

    def __getattr__(self, name):
        return getattr(self._executor, name)


def scheduler_of(executor):
    clock = Clock()
    timed = TimedExecutor(executor, clock)
    return Scheduler(timed, lambda ids: np.asarray([ids], np.int64), clock=clock, choose=choose_together)


def request(prompt, seed, state=None):
    num_read = 0 if state is None else int(state["num_tokens"][0])
    sampler = Sampler(SamplingParameters(seed=seed), prompt, first_position=num_read + len(prompt))
    return Request(prompt, sampler, MAX_TOKENS, END_IDS, state)


def alone(engine, prompt, seed, state=None):
    """Tokens and last state of a request that has an executor to itself."""
    executor = engine.executor(1, CAPACITY if engine.config.needs_capacity else None)
    scheduler = Scheduler(executor, lambda ids: np.asarray([ids], np.int64))
    scheduler.submit(request(prompt, seed, state))
    events = []
    while scheduler.busy:
        events += scheduler.step()
    return [event.token for event in events], events[-1].remainder.state


def random_prompt(config, seed, length):
    return np.random.default_rng(seed).integers(0, config.vocab_size, length).tolist()


@pytest.fixture(scope="module", params=["onnx griffin", "torch griffin", "onnx gemma"])
def engine(request, tiny_model_directory: Path, tiny_gemma_directory: Path):
    name, model = request.param.split()
    directory = tiny_model_directory if model == "griffin" else tiny_gemma_directory
    return griffinlm.load(directory, engine=name, weights="float32", threads=1).engine


def engine_name(engine):
    return "torch" if type(engine).__name__ == "TorchEngine" else "onnx"


def states_agree(engine, found, expected):
    for name, array in expected.items():
        assert_agree(found[name], array, "model", "float32", engine_name(engine), name)


@settings(max_examples=10)
@given(data=st.data())
def test_answers_in_random_traffic_equal_each_alone(engine, data):
    executor = engine.executor(NUM_SLOTS, CAPACITY if engine.config.needs_capacity else None)
    scheduler = scheduler_of(executor)
    start = alone(engine, random_prompt(engine.config, 99, 5), 7)[1]
    running: dict[Request, tuple[list[int], int, dict | None]] = {}
    said: dict[Request, list[int]] = {}
    finished = 0

    def submit():
        prompt = random_prompt(engine.config, data.draw(st.integers(0, 99)), data.draw(st.integers(1, 40)))
        state = data.draw(st.sampled_from([None, start]))
        seed = data.draw(st.integers(0, 1000))
        group = [request(prompt, seed + i, state) for i in range(data.draw(st.sampled_from([1, 1, 3])))]
        scheduler.submit_group(group)
        for i, one in enumerate(group):
            running[one], said[one] = (prompt, seed + i, state), []

    def suspend_and_resume():
        one = data.draw(st.sampled_from(list(running)))
        again = one.resumed(scheduler.cancel(one))
        running[again], said[again] = running.pop(one), said.pop(one)
        scheduler.submit(again)

    def step():
        nonlocal finished
        for event in scheduler.step():
            said[event.request].append(event.token)
            if event.finish_reason is not None:
                finished += 1
                expected, state = alone(engine, *running.pop(event.request))
                assert said[event.request] == expected
                states_agree(engine, event.remainder.state, state)

    for _ in range(data.draw(st.integers(5, 25))):
        choice = data.draw(st.sampled_from(["submit", "step", "step", "step", "suspend"]))
        if choice == "submit":
            submit()
        elif choice == "step":
            step()
        elif running:
            suspend_and_resume()
    while scheduler.busy:
        step()
    assert finished == len(said)
    assert scheduler.num_free_slots == NUM_SLOTS
    for slot in range(NUM_SLOTS):
        assert all(not array.any() for name, array in executor.export_state(slot).items() if name != "pending")


def test_slots_take_the_bytes_that_the_budget_divides_by(engine):
    capacity = CAPACITY if engine.config.needs_capacity else None
    layout = state_layout(engine.config, 1, capacity, engine.window_dtype, engine.precision)
    exported = engine.executor(2, capacity).export_state(1)
    assert sum(array.nbytes for array in exported.values()) == sum(spec.nbytes for spec in layout.values())


def test_a_state_without_one_of_its_arrays_is_refused(engine):
    executor = engine.executor(1, CAPACITY if engine.config.needs_capacity else None)
    whole = executor.export_state(0)
    for name in whole.keys() - {"pending"}:
        with pytest.raises(ExecutorError, match=f"a state has no array {name}"):
            executor.import_state(0, {other: array for other, array in whole.items() if other != name})
