"""Tokens that go through the loops of a model one by one, at depths of their own, are read as the model reads them.

States:
- without exits, logits = those of the whole model, whatever depth the other rows of a call stand at;
- after any exits the state = that of the same tokens at full depth, exported or gone on from, with adapters too;
- an exit's logits = the head's behind that loop;
- marking, rolling back, releasing and importing leave nothing owed behind.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop_models import (
    ADAPTER,
    NUM_SLOTS,
    Greedy,
    at_full_depth,
    capacity_of,
    engine_of,
    looped,
    random_tokens,
    read_in_random_order,
    states_agree,
)
from tolerances import assert_agree

from griffinlm.config import RecursionConfig
from griffinlm.executor import ExecutorError
from griffinlm.generation.depth import DepthScheduler
from griffinlm.generation.request import Request
from griffinlm.model import loops
from griffinlm.model.griffin import read
from griffinlm.model.loops import TorchLoopExecutor
from griffinlm.presets import PRESETS


@given(looped, st.integers(0, 2**31), st.data())
def test_tokens_without_exits_equal_the_whole_model_in_any_company(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 5)
    executor = TorchLoopExecutor(engine, NUM_SLOTS, capacity_of(config))
    expected = [at_full_depth(engine, row) for row in tokens]
    for slot, place, depth, logits in read_in_random_order(executor, tokens, data.draw):
        assert depth == config.recursion.num_loops
        assert_agree(logits, expected[slot][0][place], "model", "float32", "torch", f"token {place} of slot {slot}")
    for slot, (_, state) in enumerate(expected):
        assert executor.num_owed(slot) == 0
        states_agree(executor.export_state(slot), state)


@given(looped, st.integers(0, 2**31), st.data())
def test_the_state_after_any_exits_equals_that_of_full_depth(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 6)

    def exit_rule(x, depth):
        return torch.tensor([data.draw(st.booleans()) for _ in depth])

    executor = TorchLoopExecutor(engine, NUM_SLOTS, capacity_of(config), exit_rule)
    adapters = [data.draw(st.sampled_from([None, ADAPTER])) for _ in range(NUM_SLOTS)]
    for slot, adapter in enumerate(adapters):
        executor.use_adapter(slot, adapter)
    found = read_in_random_order(executor, tokens, data.draw)
    expected = [at_full_depth(engine, row, adapter) for row, adapter in zip(tokens, adapters, strict=True)]
    for slot, place, depth, logits in found:
        if depth == executor.num_loops:
            # What left before it was read by the deeper loops in time.
            assert_agree(logits, expected[slot][0][place], "model", "float32", "torch", f"token {place}")
    for slot, (_, state) in enumerate(expected):
        states_agree(executor.export_state(slot), state)
        assert executor.num_owed(slot) == 0


@given(looped, st.integers(0, 2**31))
def test_an_exit_gives_what_the_head_says_behind_that_loop(config, seed):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 4)
    executor = TorchLoopExecutor(engine, NUM_SLOTS, capacity_of(config), lambda x, depth: depth == 1)
    model = engine.model
    first = dataclasses.replace(config, num_layers=config.num_shared_layers, recursion=None)
    x = model.embedding(torch.from_numpy(tokens)) * config.embedding_scale
    expected = model.logits(read(first, model.layers[: config.num_shared_layers], x, None, None).x)
    for place in range(tokens.shape[1]):
        executor.enter(range(NUM_SLOTS), tokens[:, place])
        assert executor.run_loop(range(NUM_SLOTS)) == [True] * NUM_SLOTS
        assert_agree(executor.leave(range(NUM_SLOTS)), expected[:, place], "model", "float32", "torch")


def exiting_executor(num_tokens=5, preset="tiny-griffin"):
    """Slots of a model of three loops, each of which has read tokens that all left behind the first loop."""
    base = PRESETS[preset]
    period = len(base.block_pattern)
    config = dataclasses.replace(base, num_layers=3 * period + 1, recursion=RecursionConfig(3, rank=2))
    engine = engine_of(config)
    executor = TorchLoopExecutor(engine, NUM_SLOTS, capacity_of(config), lambda x, depth: depth == 1)
    tokens = random_tokens(config, 0, num_tokens)
    read_all(executor, tokens)
    return engine, executor, tokens


def read_all(executor, tokens):
    for column in tokens.T:
        executor.enter(range(NUM_SLOTS), column)
        executor.run_loop(range(NUM_SLOTS))
        executor.leave(range(NUM_SLOTS))


def test_a_state_that_owes_may_be_exported_marked_and_gone_on_from():
    engine, executor, tokens = exiting_executor()
    assert [executor.num_owed(slot) for slot in range(NUM_SLOTS)] == [5] * NUM_SLOTS
    expected = at_full_depth(engine, tokens[0])[1]
    mark = executor.mark(0)
    read_all(executor, tokens[:, :2])
    executor.rollback(0, mark)
    assert executor.num_owed(0) == 0
    states_agree(executor.export_state(0), expected)
    again = at_full_depth(engine, [*tokens[1], *tokens[1, :2]])
    states_agree(executor.export_state(1), again[1])
    executor.import_state(2, expected)
    assert executor.num_owed(2) == 0
    states_agree(executor.export_state(2), expected)


def test_whatever_is_read_at_full_depth_sees_the_tokens_that_left_early():
    engine, executor, tokens = exiting_executor()
    more = random_tokens(engine.config, 1, 3)
    logits = executor.prefill(range(NUM_SLOTS), more, None, "last")
    for slot in range(NUM_SLOTS):
        expected = at_full_depth(engine, [*tokens[slot], *more[slot]])[0]
        assert_agree(logits[slot, 0], expected[-1], "model", "float32", "torch")


def test_another_adapter_is_used_from_the_next_token_on():
    engine, executor, tokens = exiting_executor()
    executor.use_adapter(0, ADAPTER)
    states_agree(executor.export_state(0), at_full_depth(engine, tokens[0])[1])


def test_a_released_slot_owes_nothing():
    _, executor, _ = exiting_executor()
    executor.release(1)
    assert executor.num_owed(1) == 0
    assert all(not array.any() for name, array in executor.export_state(1).items() if name != "pending")


def test_a_token_that_finds_too_many_owed_may_not_leave(monkeypatch):
    monkeypatch.setattr(loops, "MAX_OWED_TOKENS", 5)
    _, executor, tokens = exiting_executor()
    executor.enter([0], [int(tokens[0, 0])])
    assert executor.run_loop([0]) == [False]
    executor.run_loop([0])
    assert executor.num_owed(0) == 6, "one loop deeper"


def test_a_model_without_loops_is_refused():
    with pytest.raises(ExecutorError, match="the model has no loops"):
        TorchLoopExecutor(engine_of(PRESETS["tiny-griffin"]), 1)


@given(looped, st.integers(0, 2**31), st.sampled_from(["depth", "sequence", "lock_step"]))
def test_answers_without_exits_are_those_of_full_depth_token_for_token(config, seed, batching):
    engine, prompts = engine_of(config, seed), random_tokens(config, seed, 4)
    executor = TorchLoopExecutor(engine, 2, capacity_of(config))
    scheduler = DepthScheduler(executor, lambda ids: np.asarray([ids]), batching)
    requests = [Request(prompt.tolist(), Greedy(), 4 + i, frozenset()) for i, prompt in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    said = {request: [] for request in requests}
    while scheduler.busy:
        for event in scheduler.step():
            said[event.request].append(event.token)
            if event.finish_reason is not None:
                read_tokens = [*event.request.prompt, *said[event.request][:-1]]
                states_agree(event.remainder.state, at_full_depth(engine, read_tokens)[1])
    for request in requests:
        plain, expected = engine.executor(1, capacity_of(config)), []
        logits = plain.prefill([0], np.asarray([request.prompt]), None, "last")[:, 0]
        for _ in range(request.max_tokens):
            expected.append(int(logits[0].argmax()))
            logits = plain.step([0], expected[-1:])
        assert said[request] == expected
