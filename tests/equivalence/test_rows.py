"""What stands beside a document, before it in its row, or around it as padding does not change its numbers.

States:
- packed documents = the same documents alone, documents of 1, 2, 3 tokens too, with a boundary anywhere in a chunk;
- a row in a padded batch (left, right, both sides, in the middle) = the row alone, rows of 1, 2, 3 tokens, of a first
  token only, and of no token at all; so is what it decodes after the padding;
- a batch of m = m batches of one; the order of the rows does not matter.
"""

import torch
from documents import Row, call_positions
from hypothesis import assume, given
from hypothesis import strategies as st
from small_models import (
    Case,
    assert_same_logits,
    assert_same_state,
    cases,
    copy_state,
    empty_state,
    is_same,
    take_rows,
)
from torch import Tensor

from griffinlm.model.griffin import GriffinState

several_rows = st.integers(2, 4)
document_lengths = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 12)), min_size=1, max_size=5)


@given(cases(), document_lengths, st.data())
def test_packed_documents_equal_the_same_documents_alone(case, lengths, data):
    """In one call, or in two with a cut anywhere; the state after them is that of the last document."""
    row = Row(0, tuple(lengths))
    tokens = _tokens(case, 1, row.num_tokens)
    positions, _ = call_positions([row])
    cut = data.draw(st.integers(0, row.num_tokens - 1))
    state = empty_state(case.model, 1, row.num_tokens)
    parts = []
    for part in (slice(0, cut), slice(cut, row.num_tokens)):
        if tokens[:, part].shape[1]:
            logits, state = case.model(tokens[:, part], state, positions[:, part])
            parts.append(logits)
    packed = torch.cat(parts, dim=1)
    alone = [
        case.model(tokens[:, first : first + length], empty_state(case.model, 1, row.num_tokens))
        for _, first, length in row.documents()
    ]
    assert_same_logits(packed, torch.cat([logits for logits, _ in alone], dim=1))
    assert_same_state(state, alone[-1][1])


def _tokens(case: Case, num_rows: int, num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_rows * 1000 + num_tokens)
    return torch.randint(case.model.config.vocab_size, (num_rows, num_tokens), generator=generator)


@st.composite
def paddings(draw: st.DrawFn, num_rows: int, num_tokens: int) -> Tensor:
    """[B, T] bool, True where padding stands: left, right, on both sides, anywhere, nowhere, everywhere."""
    padded = torch.zeros(num_rows, num_tokens, dtype=torch.bool)
    for row in padded:
        kind = draw(st.sampled_from(["left", "right", "both", "anywhere"]))
        left = draw(st.integers(0, num_tokens)) if kind in ("left", "both") else 0
        right = draw(st.integers(0, num_tokens - left)) if kind in ("right", "both") else 0
        row[:left] = True
        row[num_tokens - right :] = True
        if kind == "anywhere":
            row |= torch.tensor(draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)))
    return padded


def _positions(padding: Tensor, state: GriffinState, starts: Tensor) -> Tensor:
    """[B, T] positions of tokens that continue the state around the padding; where `starts` holds a document begins."""
    positions = torch.full(padding.shape, -1)
    for row, place in enumerate(state.num_tokens.tolist()):
        for t in range(padding.shape[1]):
            if not padding[row, t]:
                place = 0 if starts[row, t] else place
                positions[row, t] = place
                place += 1
    return positions


@given(cases(num_rows=several_rows), st.booleans(), st.data())
def test_padded_row_equals_the_row_alone(case, is_used, data):
    """From an empty and from a used state, with documents that begin between the padding, and on after it."""
    model, tokens = case.model, case.tokens
    num_rows, num_tokens = tokens.shape
    state = empty_state(model, num_rows, 2 * num_tokens + 8)
    if is_used:
        _, state = model(tokens.flip(1), state)
    padding = data.draw(paddings(num_rows, num_tokens))
    starts = torch.rand(padding.shape, generator=torch.Generator().manual_seed(num_tokens)) < 0.1
    positions = _positions(padding, state, starts)
    before = copy_state(state)
    logits, after = model(tokens, state, positions)
    last, last_after = model(tokens, state, positions, logits="last")
    assert is_same(state, before)
    assert is_same(after, last_after)
    following = _tokens(case, num_rows, 3)
    decoded, decoded_state = model(following, after)
    for row in range(num_rows):
        real, alone_state = ~padding[row], take_rows(state, [row])
        if real.any():
            alone, alone_state = model(tokens[row, real][None], alone_state, positions[row, real][None])
            assert_same_logits(logits[row, real], alone[0])
            assert_same_logits(last[row, -1], alone[0, -1])
        assert_same_state(take_rows(after, [row]), alone_state)
        alone, alone_state = model(following[[row]], alone_state)
        assert_same_logits(decoded[[row]], alone)
        assert_same_state(take_rows(decoded_state, [row]), alone_state)


@given(cases(num_rows=several_rows))
def test_row_of_padding_only_keeps_its_state_bit_by_bit(case):
    _, state = case.model(case.tokens, case.empty())
    positions = state.num_tokens[:, None] + torch.zeros_like(case.tokens[:, :1])
    positions[0] = -1
    _, after = case.model(case.tokens[:, :1], state, positions)
    assert is_same(take_rows(after, [0]), take_rows(state, [0]))


@given(cases(num_rows=several_rows))
def test_what_stands_in_padding_does_not_matter(case):
    assume(case.num_tokens > 1)
    positions = torch.arange(case.num_tokens).repeat(len(case.tokens), 1) - 1
    other = case.tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % case.model.config.vocab_size
    logits, state = case.model(case.tokens, case.empty(), positions)
    found, found_state = case.model(other, case.empty(), positions)
    assert torch.equal(found[:, 1:], logits[:, 1:])
    assert is_same(found_state, state)


@given(cases(num_rows=several_rows), st.data())
def test_batch_equals_its_rows_one_by_one_in_any_order(case, data):
    order = data.draw(st.permutations(range(len(case.tokens))))
    logits, state = case.model(case.tokens, case.empty())
    moved, moved_state = case.model(case.tokens[order], case.empty())
    assert_same_logits(moved, logits[order])
    assert_same_state(moved_state, take_rows(state, order))
    for row in range(len(case.tokens)):
        alone, alone_state = case.model(case.tokens[[row]], case.empty(1))
        assert_same_logits(alone, logits[[row]])
        assert_same_state(alone_state, take_rows(state, [row]))


@given(cases(num_rows=several_rows), st.data())
def test_rows_of_different_ages_decode_as_each_alone(case, data):
    """Rows that have read different numbers of tokens share one call, as a server's slots do."""
    ages = [data.draw(st.integers(0, case.num_tokens)) for _ in case.tokens]
    alone = []
    for row, age in enumerate(ages):
        state = case.empty(1)
        alone.append(case.model(case.tokens[[row], :age], state)[1] if age else state)
    joined = GriffinState(
        torch.cat([state.num_tokens for state in alone]),
        tuple(
            type(same[0])(*map(torch.cat, zip(*same, strict=True)))
            for same in zip(*(s.blocks for s in alone), strict=True)
        ),
    )
    following = _tokens(case, len(ages), 3)
    logits, state = case.model(following, joined)
    for row, own in enumerate(alone):
        expected, expected_state = case.model(following[[row]], own)
        assert_same_logits(logits[[row]], expected)
        assert_same_state(take_rows(state, [row]), expected_state)
