"""What stands beside a document, before it in its row, around it as padding, or in other slots does not change it.

States:
- packed documents = the same documents alone;
- a row with padding anywhere = the row alone, and so is what it decodes afterwards;
- a row of padding only keeps its state, and what stands in padding does not matter, bit by bit;
- a batch = its rows one by one, in any order and any slots; rows of different ages decode as each alone;
- another row changes nothing, bit by bit; nor do slots that take no part, whatever they hold.
"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from .models import CAPACITY, NUM_SLOTS, assert_same_state, cases, is_same, read, small_calls, to_positions

a_case, batches = cases(), cases((2, 4))
document_lengths = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=5)


@given(a_case, document_lengths, st.integers(1, 9), st.data())
def test_packed_documents_equal_the_same_documents_alone(case, lengths, call_tokens, data):
    """In one prefill or in two with a cut anywhere; the state is that of the last document."""
    tokens = case.engines.tokens(1, sum(lengths))
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    cut = data.draw(st.integers(0, tokens.shape[1] - 1))
    packed, parts = case.executor(), (np.s_[:, :cut], np.s_[:, cut:])
    with small_calls(call_tokens):
        found = [packed.prefill([2], tokens[part], positions[part], "all") for part in parts if tokens[part].size]
    alone, start, expected = case.executor(), 0, []
    for length in lengths:
        alone.release(0)
        expected.append(alone.prefill([0], tokens[:, start : start + length], None, "all"))
        start += length
    case.assert_agree(np.concatenate(found, axis=1), np.concatenate(expected, axis=1))
    assert_same_state(packed.export_state(2), alone.export_state(0), case.engines.row)


@st.composite
def paddings(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """[rows, tokens] bool, True where padding stands: left, right, on both sides, anywhere, nowhere, everywhere."""
    padded = np.zeros(shape, bool)
    for row in padded:
        kind = draw(st.sampled_from(["left", "right", "both", "anywhere"]))
        left = draw(st.integers(0, shape[1])) if kind in ("left", "both") else 0
        right = draw(st.integers(0, shape[1] - left)) if kind in ("right", "both") else 0
        row[:left] = True
        row[shape[1] - right :] = True
        if kind == "anywhere":
            row |= np.array(draw(st.lists(st.booleans(), min_size=shape[1], max_size=shape[1])))
    return padded


@given(batches, st.booleans(), st.integers(1, 9), st.data())
def test_padded_row_equals_the_row_alone(case, is_used, call_tokens, data):
    """From an empty and from a used slot, with documents that begin between the padding, and on after it."""
    tokens, num_rows = case.tokens, len(case.slots)
    batch, following = case.executor(), case.engines.tokens(num_rows, 3, seed=1)
    if is_used:
        batch.prefill(case.slots, tokens[:, ::-1], None, "none")
    padding = data.draw(paddings(tokens.shape))
    starts = np.random.default_rng(tokens.shape[1]).random(tokens.shape) < 0.1
    before = [batch.export_state(slot) for slot in case.slots]
    positions = to_positions(padding, [int(state["num_tokens"][0]) for state in before], starts)
    with small_calls(call_tokens):
        logits = batch.prefill(case.slots, tokens, positions, "all")
    last = case.executor()
    for slot, state in zip(case.slots, before, strict=True):
        last.import_state(slot, state)
    last_logits = last.prefill(case.slots, tokens, positions, "last")
    assert np.isfinite(logits).all()
    assert np.isfinite(last_logits).all()
    after = [batch.export_state(slot) for slot in case.slots]
    decoded = read(batch, case.slots, following, [1, 1, 1])
    for row, slot in enumerate(case.slots):
        real, alone = ~padding[row], case.executor()
        alone.import_state(0, before[row])
        if real.any():
            expected = alone.prefill([0], tokens[row, real][None], positions[row, real][None], "all")[0]
            case.assert_agree(logits[row, real], expected)
            case.assert_agree(last_logits[row, -1], expected[-1])
        assert_same_state(after[row], alone.export_state(0), case.engines.row)
        case.assert_agree(decoded[row], read(alone, [0], following[[row]], [1, 1, 1])[0])
        assert_same_state(batch.export_state(slot), alone.export_state(0), case.engines.row)


@given(batches, st.integers(1, 3))
def test_row_of_padding_only_keeps_its_state_bit_by_bit(case, num_tokens):
    executor = case.executor()
    executor.prefill(case.slots, case.tokens, None, "none")
    before = executor.export_state(case.slots[0])
    positions = np.arange(num_tokens)[None] + np.full((len(case.slots), 1), case.tokens.shape[1])
    positions[0] = -1
    executor.prefill(case.slots, case.engines.tokens(len(case.slots), num_tokens), positions, "all")
    assert is_same(executor.export_state(case.slots[0]), before)


@given(a_case)
def test_what_stands_in_padding_does_not_matter(case):
    """Not even whether it is a token of the vocabulary."""
    padding = np.zeros((len(case.slots), 1), np.int64)
    positions = np.tile(np.arange(-1, case.tokens.shape[1]), (len(case.slots), 1))
    found = []
    for content in (0, 1, case.engines.config.vocab_size, -1):
        executor, tokens = case.executor(), np.concatenate([padding + content, case.tokens], axis=1)
        logits = executor.prefill(case.slots, tokens, positions, "all")[:, 1:]
        found.append((logits, [executor.export_state(slot) for slot in case.slots]))
    for logits, states in found[1:]:
        np.testing.assert_array_equal(logits, found[0][0])
        assert all(map(is_same, states, found[0][1]))


@given(batches, st.data())
def test_batch_equals_its_rows_one_by_one_in_any_order_and_slots(case, data):
    batch, moved = case.executor(), case.executor()
    logits = batch.prefill(case.slots, case.tokens, None, "all")
    order = data.draw(st.permutations(range(len(case.slots))))
    others = list(data.draw(st.permutations(range(NUM_SLOTS))))[: len(order)]
    case.assert_agree(moved.prefill(others, case.tokens[order], None, "all"), logits[order])
    for row, slot in enumerate(case.slots):
        alone = case.executor()
        case.assert_agree(alone.prefill([0], case.tokens[[row]], None, "all"), logits[[row]])
        for executor, at in ((alone, 0), (moved, others[order.index(row)])):
            assert_same_state(executor.export_state(at), batch.export_state(slot), case.engines.row)


@given(batches, st.data())
def test_rows_of_different_ages_decode_as_each_alone(case, data):
    """Rows that have read different numbers of tokens share a call, as a server's slots do, and not always all."""
    ages = [data.draw(st.integers(0, case.tokens.shape[1])) for _ in case.slots]
    batch, alone = case.executor(), [case.executor() for _ in case.slots]
    for row, (slot, age) in enumerate(zip(case.slots, ages, strict=True)):
        if age:
            batch.prefill([slot], case.tokens[[row], :age], None, "none")
            alone[row].prefill([0], case.tokens[[row], :age], None, "none")
    for turn in range(4):
        rows = data.draw(st.permutations(range(len(case.slots))))[: data.draw(st.integers(1, len(case.slots)))]
        tokens = case.engines.tokens(len(case.slots), 1, seed=turn)
        logits = batch.step([case.slots[row] for row in rows], tokens[rows, 0].tolist())
        for row, found in zip(rows, logits, strict=True):
            case.assert_agree(found, alone[row].step([0], tokens[row].tolist())[0])
    for slot, own in zip(case.slots, alone, strict=True):
        assert_same_state(batch.export_state(slot), own.export_state(0), case.engines.row)


@given(batches)
def test_another_row_changes_nothing_bit_by_bit(case):
    changed = case.tokens.copy()
    changed[0] = (changed[0] + 1) % case.engines.config.vocab_size
    executors = case.executor(), case.executor()
    found, expected = (
        executor.prefill(case.slots, tokens, None, "all")
        for executor, tokens in zip(executors, (changed, case.tokens), strict=True)
    )
    np.testing.assert_array_equal(found[1:], expected[1:])
    for slot in case.slots[1:]:
        assert is_same(*(executor.export_state(slot) for executor in executors))


@given(a_case)
def test_slots_that_take_no_part_are_neither_read_nor_changed(case):
    """They hold NaN wherever their arrays can; beside slots as long that hold zeros, since rings are as long."""
    clean, poisoned = case.executor(), case.executor()
    others = [slot for slot in range(NUM_SLOTS) if slot not in case.slots]
    zeros = {**clean.export_state(0), "num_tokens": np.array([CAPACITY])}
    poison = {name: _poisoned(array) for name, array in zeros.items()}
    for slot in others:
        clean.import_state(slot, zeros)
        poisoned.import_state(slot, poison)
    found, expected = (executor.prefill(case.slots, case.tokens, None, "all") for executor in (poisoned, clean))
    np.testing.assert_array_equal(found, expected)
    step = case.tokens[:, -1].tolist()
    np.testing.assert_array_equal(poisoned.step(case.slots, step), clean.step(case.slots, step))
    assert all(is_same(poisoned.export_state(slot), clean.export_state(slot)) for slot in case.slots)
    for slot in others:
        assert is_same(poisoned.export_state(slot), poison)


def _poisoned(array: np.ndarray) -> np.ndarray:
    return np.full_like(array, np.nan) if array.dtype.kind == "f" else array
