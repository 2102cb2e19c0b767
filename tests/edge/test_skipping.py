"""Tokens at depths of their own on the onnx engine.

States:
- logits and states after any exits in any company = those of the torch engine after the same exits;
- without exits, logits and states = those of the whole model's graph, in all formats and windows; greedy tokens too;
- a token taken back leaves no trace; one on its way is read by all loops before anything else looks at the slot.
"""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree

from griffinlm.config import RecursionConfig
from griffinlm.edge.skipping import OnnxSkippingExecutor, loop_sessions
from griffinlm.model.skipping import TorchSkippingExecutor

from .models import CAPACITY, Engines, config_of, engines

NUM_SLOTS = 3
CONFIGS = {
    "Griffin": config_of("Griffin", 7, recursion=RecursionConfig(2, rank=2, skips=True)),
    "Griffin in three loops": config_of("Griffin", 9, recursion=RecursionConfig(3, "all", 1, skips=True)),
    "Gemma": config_of("Gemma", 4, use_bias=False, recursion=RecursionConfig(2, rank=2, skips=True)),
    "Hawk": config_of("Hawk", 3, logit_soft_cap=None, recursion=RecursionConfig(3, skips=True)),
}
VARIANTS = [("float32", "float16"), ("float32", "int8"), ("int8", "float32"), ("mixed", "int8")]


@functools.cache
def sessions_of(pair: Engines):
    return loop_sessions(pair.checkpoint, pair.onnx.window_dtype, 1)


def skipping(pair: Engines) -> OnnxSkippingExecutor:
    capacity = CAPACITY if pair.config.needs_capacity else None
    return OnnxSkippingExecutor(pair.onnx, sessions_of(pair), None, NUM_SLOTS, capacity)


def skipping_torch(pair: Engines) -> TorchSkippingExecutor:
    return TorchSkippingExecutor(pair.torch, NUM_SLOTS, CAPACITY if pair.config.needs_capacity else None)


def assert_same_states(pair: Engines, found, expected, row=None) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_agree(found[name], array, *(row or pair.row), name)


@pytest.mark.parametrize("name", CONFIGS)
@given(st.data())
def test_any_exits_in_any_company_equal_the_torch_engines(name, data):
    pair = engines(CONFIGS[name])
    both = skipping(pair), skipping_torch(pair)
    tokens, depth = pair.tokens(NUM_SLOTS, 30), {}
    for executor in both:
        executor.prefill([2, 0], tokens[:2, 25:], None, "none")
    for turn in range(data.draw(st.integers(1, 12))):
        slots = data.draw(st.lists(st.sampled_from(range(NUM_SLOTS)), min_size=1, unique=True))
        entering = [slot for slot in slots if slot not in depth]
        for executor in both if entering else ():
            executor.enter(entering, tokens[entering, turn].tolist())
        depth |= dict.fromkeys(entering, 0)
        for executor in both:
            assert list(executor.run_loop(slots)) == [False] * len(slots)
        depth |= {slot: depth[slot] + 1 for slot in slots}
        leaving = [slot for slot in slots if depth[slot] == both[0].num_loops or data.draw(st.booleans())]
        if leaving:
            found, expected = (executor.leave(leaving) for executor in both)
            assert_agree(found, expected, *pair.row_against_torch)
            depth = {slot: at for slot, at in depth.items() if slot not in leaving}
    for slot in range(NUM_SLOTS):
        found, expected = (executor.export_state(slot) for executor in both)
        assert_same_states(pair, found, expected, pair.row_against_torch)


@pytest.mark.parametrize(("weights", "window_dtype"), [("float32", "float32"), *VARIANTS])
@pytest.mark.parametrize("name", ["Griffin", "Gemma"])
def test_tokens_without_exits_equal_the_whole_models(name, weights, window_dtype):
    pair = engines(CONFIGS[name], weights, window_dtype)
    executor, plain = skipping(pair), pair.executor(NUM_SLOTS)
    prompt, slots = pair.tokens(NUM_SLOTS, 5, seed=1), [2, 0, 1]
    found, expected = (one.prefill(slots, prompt, None, "last")[:, 0].copy() for one in (executor, plain))
    np.testing.assert_array_equal(found, expected)
    for _ in range(12):
        tokens = expected.argmax(axis=1).tolist()
        expected = plain.step(slots, tokens).copy()
        executor.enter(slots, tokens)
        for loop in range(executor.num_loops):
            # One slot is a loop ahead of the others all the way.
            executor.run_loop(slots[:1] if loop == 0 else slots)
        executor.run_loop(slots[1:])
        found = executor.leave(slots)
        assert_agree(found, expected, *pair.row)
        if weights == "float32":
            assert found.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    for slot in slots:
        assert_same_states(pair, executor.export_state(slot), plain.export_state(slot))


@pytest.mark.parametrize("window_dtype", ["float32", "int8"])
@pytest.mark.parametrize("num_loops", [1, 2])
@pytest.mark.parametrize("name", ["Griffin", "Gemma"])
def test_a_token_taken_back_leaves_no_trace(name, num_loops, window_dtype):
    executor = skipping(engines(CONFIGS[name], "float32", window_dtype))
    tokens = engines(CONFIGS[name]).tokens(NUM_SLOTS, 9)
    executor.prefill([1, 0], tokens[:2], None, "none")
    before = [executor.export_state(slot) for slot in (0, 1)]
    executor.enter([0, 1], [3, 4])
    executor.run_loop([1])
    for _ in range(num_loops - 1):
        executor.run_loop([0, 1])
    # Another slot's reading moves the rows of these.
    executor.prefill([2], tokens[2:], None, "none")
    for slot, state in enumerate(before):
        executor.withdraw(slot)
        for key, array in executor.export_state(slot).items():
            np.testing.assert_array_equal(array, state[key], key)


@pytest.mark.parametrize("look", ["export", "mark", "prefill"])
def test_a_token_on_its_way_is_read_by_all_loops_before_the_slot_is_looked_at(look):
    pair = engines(CONFIGS["Griffin"])
    executor, plain = skipping(pair), pair.executor(NUM_SLOTS)
    executor.enter([0, 1], [3, 4])
    executor.run_loop([0])
    for slot, token in ((0, 3), (1, 4)):
        plain.step([slot], [token])
        if look == "prefill":
            for one in (executor, plain):
                one.prefill([slot], np.array([[5, 6]]), None, "none")
        elif look == "mark":
            executor.rollback(slot, executor.mark(slot))
        assert_same_states(pair, executor.export_state(slot), plain.export_state(slot))


def test_a_slot_that_was_released_on_the_way_begins_anew():
    pair = engines(CONFIGS["Griffin"])
    executor, plain = skipping(pair), pair.executor(NUM_SLOTS)
    executor.enter([0], [3])
    executor.run_loop([0])
    executor.release(0)
    executor.enter([0], [4])
    for _ in range(executor.num_loops):
        executor.run_loop([0])
    assert_agree(executor.leave([0]), plain.step([0], [4]), *pair.row)
