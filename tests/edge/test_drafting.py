"""Reading ahead on the onnx engine: guesses of the first layers, read by all, kept as far as wanted.

States:
- logits behind the given token and behind every guess = those of the plain executor, in every format of weights and
  window, for rows side by side;
- keeping any number of the tokens = never having read the others, whatever other slots do in between;
- a guess is made as long as one row is sure enough; the guesses are the first layers' best tokens;
- slots with an adapter, and the end of the capacity, guess less.
"""

import functools

import numpy as np
import pytest
from adapters import adaptable
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree

from griffinlm.checkpoint.adapter import LowRank
from griffinlm.edge import drafting
from griffinlm.edge.ahead import MAX_GUESSES
from griffinlm.edge.drafting import OnnxDraftingExecutor
from griffinlm.edge.engine import ahead_session, build_engine
from griffinlm.recursive.first_loop import first_loop

from .models import CAPACITY, CONFIGS, VARIANTS, assert_same_state, engines

NUM_SLOTS = 3
RECURSIVE = sorted(name for name, config in CONFIGS.items() if config.recursion is not None)
NEVER, ALWAYS = 2.0, 1e-30


@functools.cache
def session_of(pair, num_first_layers):
    return ahead_session(pair.checkpoint, pair.onnx.window_dtype, 1, num_first_layers)


def drafting_of(pair, num_first_layers=None, engine=None, capacity=CAPACITY):
    config = pair.config
    session = session_of(pair, num_first_layers or config.num_shared_layers)
    return OnnxDraftingExecutor(engine or pair.onnx, session, NUM_SLOTS, capacity if config.needs_capacity else None)


@pytest.fixture(autouse=True)
def _guesses_are_always_made(monkeypatch):
    monkeypatch.setattr(drafting, "LEAST_PROBABILITY", ALWAYS)


def plain_after(pair, tokens):
    executor = pair.executor()
    return executor.prefill([0], np.asarray([tokens]), None, "all")[0], executor.export_state(0)


@given(st.sampled_from(sorted(CONFIGS)), st.sampled_from(VARIANTS), st.integers(0, 2**31), st.data())
def test_keeping_any_number_of_tokens_equals_never_having_read_the_others(name, variant, seed, data):
    pair = engines(CONFIGS[name], *variant)
    most = pair.config.num_shared_layers or pair.config.num_layers - 1
    executor = drafting_of(pair, data.draw(st.integers(1, most)))
    prompts = pair.tokens(NUM_SLOTS, data.draw(st.integers(1, 12)), seed)
    if prompts.shape[1] > 1:
        executor.prefill(range(NUM_SLOTS), prompts[:, :-1], None, "none")
    num_guesses, slots = data.draw(st.integers(0, MAX_GUESSES)), data.draw(st.permutations(range(NUM_SLOTS)))
    ids = {}
    for part in (slots[:2], slots[2:]):
        guesses, logits = executor.read_ahead(part, prompts[part, -1].tolist(), num_guesses)
        assert guesses.shape == (len(part), num_guesses)
        for row, slot in enumerate(part):
            expected, _ = plain_after(pair, [*prompts[slot], *guesses[row]])
            assert_agree(logits[row], expected[prompts.shape[1] - 1 :], *pair.row)
            ids[slot] = [*prompts[slot], *guesses[row]]
    for slot in data.draw(st.permutations(range(NUM_SLOTS))):
        num_kept = data.draw(st.integers(1, num_guesses + 1))
        executor.keep(slot, num_kept)
        kept = ids[slot][: prompts.shape[1] - 1 + num_kept]
        assert_same_state(executor.export_state(slot), plain_after(pair, kept)[1], pair.row)


@pytest.mark.parametrize("name", RECURSIVE)
def test_guesses_are_the_best_tokens_of_the_first_loop(name):
    pair = engines(CONFIGS[name])
    first = build_engine(first_loop(pair.checkpoint), "float32", 1)
    plain = first.executor(1, CAPACITY if pair.config.needs_capacity else None)
    guesses, _ = drafting_of(pair).read_ahead([0], [3], 4)
    expected = [3]
    for _ in range(4):
        expected.append(int(plain.step([0], expected[-1:])[0].argmax()))
    assert guesses[0].tolist() == expected[1:]


def test_nothing_is_guessed_where_no_row_is_sure(monkeypatch):
    monkeypatch.setattr(drafting, "LEAST_PROBABILITY", NEVER)
    pair = engines(CONFIGS["recursive Griffin"])
    guesses, logits = drafting_of(pair).read_ahead([0, 2], [3, 4], 4)
    assert guesses.shape == (2, 0)
    assert_agree(logits[1], plain_after(pair, [4])[0], *pair.row)


def test_slots_with_an_adapter_guess_nothing_and_read_with_it():
    pair, terms, random = engines(CONFIGS["recursive Griffin"]), {}, np.random.default_rng(0)
    for name in adaptable(pair.config):
        *blocks, out, into = pair.config.place_shapes()[name]
        shapes = (*blocks, 2, into), (*blocks, out, 2)
        terms[name] = LowRank(*(0.3 * random.standard_normal(shape, np.float32) for shape in shapes))
    engine = build_engine(pair.checkpoint, "float32", 1, {"other": terms})
    executor, plain = drafting_of(pair, engine=engine), engine.executor(1)
    executor.use_adapter(1, "other")
    plain.use_adapter(0, "other")
    guesses, logits = executor.read_ahead([1], [3], 4)
    assert guesses.shape == (1, 0)
    assert_agree(logits[0], plain.step([0], [3]), "model, adapter", "float32", "onnx")
    executor.keep(1, 1)
    assert_same_state(executor.export_state(1), plain.export_state(0), ("model, adapter", "float32", "onnx"))


def test_guesses_end_where_the_capacity_does():
    executor = drafting_of(engines(CONFIGS["recursive Gemma"]), capacity=4)
    executor.prefill([0], np.asarray([[1, 2]]), None, "none")
    guesses, logits = executor.read_ahead([0], [3], 5)
    assert (guesses.shape[1], logits.shape[1]) == (1, 2)


def test_what_was_read_ahead_is_forgotten_where_the_slot_goes_back_or_is_released():
    pair = engines(CONFIGS["recursive Griffin"])
    executor = drafting_of(pair)
    executor.prefill([0, 1], np.asarray([[1, 2], [3, 4]]), None, "none")
    mark = executor.mark(0)
    executor.read_ahead([0, 1], [5, 6], 3)
    executor.rollback(0, mark)
    executor.release(1)
    for slot, tokens in ((0, [1, 2, 5]), (1, [6])):
        _, logits = executor.read_ahead([slot], tokens[-1:], 2)
        assert_agree(logits[0, 0], plain_after(pair, tokens)[0][-1], *pair.row)
