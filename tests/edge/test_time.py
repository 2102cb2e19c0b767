"""Reading in one call, in chunks, token by token, in forks and in turns is the same, with weights of every format.

States:
- a prompt = token by token = chunks of every split = calls of the graph of any size;
- fork: two continuations from a mark, or from an exported state, = two runs from scratch, and mark and export stay;
- two conversations interleaved on one executor = each alone;
- a new document in a used slot = a fresh slot; so is a released one, bit by bit;
- a later token changes nothing before it, bit by bit;
- the logits asked for change nothing but the logits.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree

from .models import CONFIGS, LOCAL, VARIANTS, assert_same_state, cases, cuts, engines, is_same, read, small_calls

a_case = cases()


@given(a_case)
def test_prompt_equals_token_by_token(case):
    whole, stepped = case.executor(), case.executor()
    logits = whole.prefill(case.slots, case.tokens, None, "all")
    case.assert_agree(read(stepped, case.slots, case.tokens, [1] * case.tokens.shape[1]), logits)
    case.assert_same_states(stepped, whole)


@given(a_case, st.integers(1, 9), st.data())
def test_prompt_equals_chunks_of_any_split_in_calls_of_any_size(case, call_tokens, data):
    whole, cut = case.executor(), case.executor()
    logits = whole.prefill(case.slots, case.tokens, None, "all")
    with small_calls(call_tokens):
        chunks = data.draw(cuts(case.engines.config, case.tokens.shape[1]))
        case.assert_agree(read(cut, case.slots, case.tokens, chunks), logits)
    case.assert_same_states(cut, whole)


@given(a_case, st.data())
def test_forks_equal_runs_from_scratch_and_leave_their_origin(case, data):
    """By a mark that the slot is rolled back to, and by a state imported into another slot."""
    cut = data.draw(st.integers(0, case.tokens.shape[1] - 1))
    slot, other, tokens = 1, 3, case.tokens[:1]
    executor = case.executor()
    if cut:
        executor.prefill([slot], tokens[:, :cut], None, "none")
    mark, origin = executor.mark(slot), executor.export_state(slot)
    for end in (tokens[:, cut:], tokens[:, cut:][:, ::-1]):
        expected = case.executor()
        logits = expected.prefill([0], np.concatenate([tokens[:, :cut], end], axis=1), None, "all")[:, cut:]
        executor.rollback(slot, mark)
        executor.import_state(other, origin)
        assert is_same(executor.export_state(slot), origin)
        for one in (slot, other):
            case.assert_agree(executor.prefill([one], end, None, "all"), logits)
            assert_same_state(executor.export_state(one), expected.export_state(0), case.engines.row)


@given(a_case, st.data())
def test_two_interleaved_conversations_equal_each_alone(case, data):
    """The same calls in another order: bit by bit, since nothing may survive a call outside the slots."""
    conversations = {1: case.tokens[:1], 4: case.tokens[:1, ::-1]}
    chunks = {slot: data.draw(cuts(case.engines.config, tokens.shape[1])) for slot, tokens in conversations.items()}
    together, alone = case.executor(), {slot: case.executor() for slot in conversations}
    expected = {slot: read(alone[slot], [slot], conversations[slot], chunks[slot]) for slot in conversations}
    parts = {slot: [] for slot in conversations}
    for turn in itertools.zip_longest(*chunks.values()):
        for slot, length in zip(chunks, turn, strict=True):
            if length is not None:
                start = sum(part.shape[1] for part in parts[slot])
                chunk = conversations[slot][:, start : start + length]
                parts[slot].append(read(together, [slot], chunk, [length]))
    for slot in conversations:
        np.testing.assert_array_equal(np.concatenate(parts[slot], axis=1), expected[slot])
        assert is_same(together.export_state(slot), alone[slot].export_state(slot))


@given(a_case, st.data())
def test_new_document_in_a_used_slot_equals_a_fresh_slot(case, data):
    used, fresh = case.executor(), case.executor()
    used.prefill(case.slots, case.tokens[:, ::-1], None, "none")
    first = data.draw(st.integers(1, case.tokens.shape[1]))
    positions = np.tile(np.arange(first), (len(case.slots), 1))
    parts = [used.prefill(case.slots, case.tokens[:, :first], positions, "all")]
    if first < case.tokens.shape[1]:
        parts.append(used.prefill(case.slots, case.tokens[:, first:], None, "all"))
    case.assert_agree(np.concatenate(parts, axis=1), fresh.prefill(case.slots, case.tokens, None, "all"))
    case.assert_same_states(used, fresh)


@given(a_case)
def test_released_slot_equals_a_fresh_slot_bit_by_bit(case):
    used, fresh = case.executor(), case.executor()
    used.prefill(case.slots, case.tokens[:, ::-1], None, "none")
    for slot in case.slots:
        used.release(slot)
        assert is_same(used.export_state(slot), fresh.export_state(slot))
    np.testing.assert_array_equal(
        used.prefill(case.slots, case.tokens, None, "all"), fresh.prefill(case.slots, case.tokens, None, "all")
    )
    assert all(is_same(used.export_state(slot), fresh.export_state(slot)) for slot in case.slots)


@given(a_case, st.data())
def test_later_token_changes_nothing_before_it_bit_by_bit(case, data):
    first = data.draw(st.integers(0, case.tokens.shape[1] - 1))
    changed = case.tokens.copy()
    changed[:, first:] = (changed[:, first:] + 1) % case.engines.config.vocab_size
    found, expected = (case.executor().prefill(case.slots, tokens, None, "all") for tokens in (changed, case.tokens))
    np.testing.assert_array_equal(found[:, :first], expected[:, :first])


@given(a_case)
def test_logits_of_the_last_token_and_none_at_all_change_nothing_else(case):
    every, last, none = (case.executor() for _ in range(3))
    logits = every.prefill(case.slots, case.tokens, None, "all")
    case.assert_agree(last.prefill(case.slots, case.tokens, None, "last"), logits[:, -1:])
    assert none.prefill(case.slots, case.tokens, None, "none") is None
    for slot in case.slots:
        assert is_same(last.export_state(slot), every.export_state(slot))
        assert is_same(none.export_state(slot), every.export_state(slot))


@pytest.mark.parametrize(("weights", "window_dtype"), VARIANTS)
@pytest.mark.parametrize("name", LOCAL)
def test_long_decoding_does_not_drift(name, weights, window_dtype):
    """The steps of many windows = one call over all tokens; the last steps = one call from the state before them."""
    pair = engines(CONFIGS[name], weights, window_dtype)
    tokens = pair.tokens(1, 300)
    whole, stepped, tail = pair.executor(), pair.executor(), pair.executor()
    logits = whole.prefill([0], tokens, None, "all")
    assert_agree(read(stepped, [0], tokens[:, :250], [1] * 250), logits[:, :250], *pair.row)
    tail.import_state(0, stepped.export_state(0))
    late = read(stepped, [0], tokens[:, 250:], [1] * 50)
    assert_agree(late, logits[:, 250:], *pair.row)
    assert_agree(tail.prefill([0], tokens[:, 250:], None, "all"), late, *pair.row)
    for executor in (stepped, tail):
        assert_same_state(executor.export_state(0), whole.export_state(0), pair.row)
