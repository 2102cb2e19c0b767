"""Slots of the onnx engine: what is refused, and that a refusal, a mark or a cut ring leaves no trace."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from tolerances import assert_agree

from griffinlm.edge import memory, slots
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.edge.memory import NotEnoughMemoryError
from griffinlm.errors import GriffinError

from .models import CAPACITY, CONFIGS, assert_same_state, config_of, engines, is_same, read

GRIFFIN, GEMMA = CONFIGS["Griffin"], CONFIGS["Gemma"]
TOKENS = np.array([[3, 1, 4, 1, 5]])


def without(name: str) -> Callable[[dict], dict]:
    return lambda state: {n: a for n, a in state.items() if n != name}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.prefill([1], TOKENS + 20, None, "all"), r"token id 23 is not in the vocabulary; ids are 0 to 22"),
        (lambda e: e.prefill([1], -TOKENS, None, "all"), r"token id -3 is not in the vocabulary"),
        (lambda e: e.step([0, 1], [2, 23]), r"token id 23 is not in the vocabulary"),
        (lambda e: e.prefill([1], TOKENS * 1.0, None, "all"), r"token ids are float64\[1, 5\]; they must be whole"),
        (lambda e: e.prefill([1], TOKENS[:, :0], None, "all"), r"there are no tokens"),
        (lambda e: e.prefill([1], TOKENS, TOKENS * 1.0, "all"), r"positions are float64\[1, 5\]"),
        (lambda e: e.prefill([1], TOKENS, TOKENS[:, :3], "all"), r"positions are int64\[1, 3\]"),
        (lambda e: e.prefill([1], TOKENS, np.array([[-2, 0, 1, 2, 3]]), "all"), r"position -2 is below -1"),
        (lambda e: e.prefill([1], TOKENS, np.array([[5, 6, 8, 9, 10]]), "all"), r"position 8 continues no document"),
        (lambda e: e.prefill([1], TOKENS, np.array([[6, 7, 8, 9, 10]]), "all"), r"here it must be 5, 0 or -1"),
    ],
)
def test_what_cannot_be_read_is_refused_and_changes_nothing(call, message):
    executor = engines(GRIFFIN).executor(3)
    executor.prefill([1], TOKENS, None, "none")
    before = [executor.export_state(slot) for slot in range(3)]
    with pytest.raises(GriffinError, match=message) as caught:
        call(executor)
    assert str(caught.value).isprintable()
    assert all(is_same(executor.export_state(slot), state) for slot, state in enumerate(before))


def test_a_conversation_reads_up_to_its_capacity_and_not_past_it():
    executor = engines(GEMMA).onnx.executor(2, capacity=6)
    executor.prefill([0], TOKENS, None, "none")
    executor.step([0], [2])
    full = executor.export_state(0)
    message = r"the conversation reaches 7 tokens; the state's capacity is 6"
    with pytest.raises(GriffinError, match=message):
        executor.step([0], [2])
    with pytest.raises(GriffinError, match=message):
        executor.step([1, 0], [2, 2])
    with pytest.raises(GriffinError, match=r"reaches 10 tokens"):
        executor.prefill([1], np.concatenate([TOKENS, TOKENS], axis=1), None, "all")
    assert is_same(executor.export_state(0), full)
    assert executor.export_state(1)["num_tokens"] == 0


@pytest.mark.parametrize(("config", "capacity"), [(GEMMA, None), (GEMMA, 0), (GRIFFIN, 5)])
def test_capacity_is_for_global_attention_and_needed_there(config, capacity):
    with pytest.raises(GriffinError, match="capacity is"):
        engines(config).onnx.executor(1, capacity)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(GRIFFIN, attention=dataclasses.replace(GRIFFIN.attention, window_tokens=8)),
        dataclasses.replace(GRIFFIN, recurrent=dataclasses.replace(GRIFFIN.recurrent, width=18)),
        dataclasses.replace(GRIFFIN, recurrent=dataclasses.replace(GRIFFIN.recurrent, num_conv_taps=3)),
    ],
)
def test_a_state_of_other_sizes_is_refused_and_changes_nothing(other):
    executor = engines(GRIFFIN).executor()
    executor.prefill([0], TOKENS, None, "none")
    before = executor.export_state(0)
    with pytest.raises(GriffinError, match=r"a state's layers\.\d\.\w+ is \w+\[.*\]; this executor's slots have"):
        executor.import_state(0, engines(other).executor().export_state(0))
    assert is_same(executor.export_state(0), before)


@pytest.mark.parametrize("window_dtype", ["float16", "int8"])
def test_a_state_with_another_window_type_is_refused(window_dtype):
    state = engines(GRIFFIN, "float32", window_dtype).executor().export_state(0)
    with pytest.raises(GriffinError, match=rf"keys is {window_dtype}\[7, 8\]; this executor's slots have float32"):
        engines(GRIFFIN).executor().import_state(0, state)


def test_states_that_do_not_fit_into_memory_are_refused_before_they_are_made(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000_000)
    made: list[OnnxExecutor] = [engines(GRIFFIN).onnx.executor(100)]
    monkeypatch.setattr(np, "zeros", lambda *_: pytest.fail("memory was taken"))
    message = r"^the state of 100000 conversations needs \d+ MB of memory; 10 MB are available$"
    with pytest.raises(NotEnoughMemoryError, match=message):
        engines(GRIFFIN).onnx.executor(100_000)
    assert made[0].num_slots == 100


def test_a_mark_stays_good_whatever_its_slot_and_others_read():
    executor = engines(GRIFFIN).executor(4)
    executor.prefill([2], TOKENS, None, "none")
    mark, before = executor.mark(2), executor.export_state(2)
    expected = executor.step([2], [7])
    for others in ([2], [3, 0, 2], [2, 1]):
        executor.prefill(others, np.repeat(TOKENS, len(others), axis=0), None, "none")
        executor.rollback(2, mark)
        assert is_same(executor.export_state(2), before)
    np.testing.assert_array_equal(executor.step([2], [7]), expected)


def test_what_is_exported_is_a_copy():
    executor = engines(GRIFFIN).executor()
    executor.prefill([0], TOKENS, None, "none")
    exported, again = executor.export_state(0), executor.export_state(0)
    logits = executor.step([0], [1])
    assert is_same(exported, again)
    executor.import_state(0, exported)
    for array in exported.values():
        array[:] = 1
    assert is_same(executor.export_state(0), again)
    np.testing.assert_array_equal(executor.step([0], [1]), logits)


def test_logits_of_a_step_stay_as_they_are():
    executor = engines(GRIFFIN).executor()
    first = executor.step([0], [1])
    kept = first.copy()
    assert (executor.step([0], [2]) != kept).any()
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", ["attention first", "Gemma"])
def test_rings_read_as_far_as_they_are_used_equal_whole_ones(name, monkeypatch):
    """Past several multiples of the step at which more of a ring is read, around the window and the capacity."""
    config = CONFIGS[name]
    if name != "Gemma":
        attention = dataclasses.replace(config.attention, window_tokens=150)
        config = config_of(name, 3, attention=attention)
    pair = engines(config)
    tokens = pair.tokens(1, CAPACITY)
    monkeypatch.setattr(slots, "RING_STEP_SLOTS", 64)
    cut = pair.executor()
    found = read(cut, [0], tokens, [60, *[1] * 10, 50, *[1] * 80])
    monkeypatch.setattr(slots, "RING_STEP_SLOTS", 1 << 20)
    whole, prompt = pair.executor(), pair.executor()
    assert_agree(found, read(whole, [0], tokens, [1] * CAPACITY), *pair.row)
    assert_agree(found, prompt.prefill([0], tokens, None, "all"), *pair.row)
    for other in (whole, prompt):
        assert_same_state(cut.export_state(0), other.export_state(0), pair.row)


def test_what_an_earlier_document_left_does_not_travel():
    """The state of a short document in a used slot has zeros where the long one stood."""
    for window_dtype in ("float32", "int8"):
        pair = engines(GRIFFIN, "float32", window_dtype)
        used, fresh = pair.executor(), pair.executor()
        used.prefill([0], pair.tokens(1, 30), None, "none")
        for length in (1, 2):
            used.prefill([0], TOKENS[:, :length], np.arange(length)[None], "none")
            fresh.release(0)
            fresh.prefill([0], TOKENS[:, :length], None, "none")
            found, expected = used.export_state(0), fresh.export_state(0)
            assert_same_state(found, expected, pair.row)
            assert all((found[name] == 0).all() for name in found if not expected[name].any())
            for name, values in expected.items():
                assert not found[name][values == 0].any(), name


@pytest.mark.parametrize("grow", ["import", "prefill", "step"])
@pytest.mark.parametrize("name", ["attention first", "recurrent and global"])
def test_one_slot_goes_on_while_another_needs_longer_rings(name, grow):
    """Rings grow with the longest conversation; the shorter ones read on as before."""
    config = CONFIGS[name]
    if name == "attention first":
        config = config_of(name, 3, attention=dataclasses.replace(config.attention, window_tokens=150))
    pair = engines(config)
    short, long = pair.tokens(1, 40, seed=1), pair.tokens(1, 140, seed=2)
    executor, alone, other = pair.executor(2), pair.executor(), pair.executor()
    other.prefill([0], long, None, "none")
    found = [read(executor, [0], short[:, :10], [1] * 10)]
    if grow == "import":
        executor.import_state(1, other.export_state(0))
    else:
        read(executor, [1], long, [140] if grow == "prefill" else [1] * 140)
    found.append(read(executor, [0], short[:, 10:], [1] * 30))
    assert_agree(np.concatenate(found, axis=1), read(alone, [0], short, [1] * 40), *pair.row)
    assert_same_state(executor.export_state(0), alone.export_state(0), pair.row)
    assert_same_state(executor.export_state(1), other.export_state(0), pair.row)
    assert_agree(executor.step([1], [1]), other.step([0], [1]), *pair.row)


@pytest.mark.parametrize("window_dtype", ["float32", "int8"])
def test_a_mark_is_good_after_rings_have_grown(window_dtype):
    config = config_of("attention first", 3)
    config = dataclasses.replace(config, attention=dataclasses.replace(config.attention, window_tokens=150))
    pair = engines(config, "float32", window_dtype)
    executor = pair.executor(2)
    executor.prefill([1], TOKENS, None, "none")
    mark, before = executor.mark(1), executor.export_state(1)
    end = pair.tokens(1, 300)
    first = executor.prefill([1], end, None, "all")
    executor.rollback(1, mark)
    assert is_same(executor.export_state(1), before)
    assert_agree(executor.prefill([1], end, None, "all"), first, *pair.row)


@pytest.mark.parametrize("name", ["attention first", "Gemma"])
def test_a_slot_read_by_itself_is_the_same_whatever_others_hold_bit_by_bit(name):
    config = CONFIGS[name]
    if name == "attention first":
        config = config_of(name, 2, attention=dataclasses.replace(config.attention, window_tokens=50))
    pair = engines(config)
    tokens, chunks = pair.tokens(1, 60), [4, 1, 2, 1, 1, 7, 1, 1, 1, 1, 13, 1, *[1] * 26]
    alone, beside = pair.executor(), pair.executor(3)
    beside.prefill([0], pair.tokens(1, 150), None, "none")
    np.testing.assert_array_equal(read(beside, [1], tokens, chunks), read(alone, [0], tokens, chunks))
    assert is_same(beside.export_state(1), alone.export_state(0))
