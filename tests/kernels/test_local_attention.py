"""Attention over a ring and a chunk = every token's visible keys listed by hand.

A key is visible to a query of the same document when key <= query <= key + W, in places of that document; global
attention has no W. A ring's slot p mod S holds the key of place p.
"""

from unittest import mock

import torch
from documents import Row, call_positions, rows
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels.local_attention import reference
from griffinlm.kernels.local_attention.reference import attention, ring_positions, write_ring

NUM_HEADS, HEAD_SIZE = 2, 3
CAPACITY = 40

windows = st.one_of(st.none(), st.integers(1, 9), st.integers(20, 30))
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


def attend(query: Tensor, key: Tensor, value: Tensor, window: int | None, first: int) -> Tensor:
    """One whole document: queries [n - first, N, H] of its places from `first` on, key and value [n, H]."""
    out = []
    for place in range(first, len(key)):
        visible = [k for k in range(len(key)) if k <= place and (window is None or place <= k + window)]
        weights = torch.softmax(query[place - first] @ key[visible].T / HEAD_SIZE**0.5, dim=-1)
        out.append(weights @ value[visible])
    return torch.stack(out)


class Call:
    """A call with random queries, keys and values, and rings filled slot by slot from what each row read before."""

    def __init__(self, drawn: list[Row], window: int | None, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.positions, self.lengths = call_positions(drawn)
        self.query = normal(*self.positions.shape, NUM_HEADS, HEAD_SIZE)
        self.key, self.value = normal(*self.positions.shape, HEAD_SIZE), normal(*self.positions.shape, HEAD_SIZE)
        self.keys_before = [normal(row.num_before, HEAD_SIZE) for row in drawn]
        self.values_before = [normal(row.num_before, HEAD_SIZE) for row in drawn]
        self.num_slots = CAPACITY if window is None else window
        # Slots that hold nothing of the document hold an older document's numbers.
        self.ring_keys = normal(len(drawn), self.num_slots, HEAD_SIZE)
        self.ring_values = normal(len(drawn), self.num_slots, HEAD_SIZE)
        for index, row in enumerate(drawn):
            for place in range(row.num_before):
                self.ring_keys[index, place % self.num_slots] = self.keys_before[index][place]
                self.ring_values[index, place % self.num_slots] = self.values_before[index][place]
        self.ring = (self.ring_keys, self.ring_values, torch.tensor([row.num_before for row in drawn]))


@given(rows(), windows, dtypes, st.sampled_from([1, 2, 3, 256]), seeds)
def test_equals_the_visible_keys_listed_by_hand(drawn, window, dtype, query_block_tokens, seed):
    call = Call(drawn, window, dtype, seed)
    with mock.patch.object(reference, "QUERY_BLOCK_TOKENS", query_block_tokens):
        out = attention(call.query, call.key, call.value, call.positions, window, call.ring)
    assert out.dtype == dtype
    assert out.isfinite().all()
    for index, row in enumerate(drawn):
        for before, first, length in row.documents():
            here = slice(first, first + length)
            key = torch.cat([call.keys_before[index][:before], call.key[index, here]]).double()
            value = torch.cat([call.values_before[index][:before], call.value[index, here]]).double()
            expected = attend(call.query[index, here].double(), key, value, window, before)
            assert_agree(out[index, here], expected, "attention", dtype, "reference")


@given(rows(most_before=0), windows, st.sampled_from([2, 256]), seeds)
def test_no_ring_equals_a_ring_of_another_document(drawn, window, query_block_tokens, seed):
    call = Call(drawn, window, torch.float64, seed)
    with mock.patch.object(reference, "QUERY_BLOCK_TOKENS", query_block_tokens):
        out = attention(call.query, call.key, call.value, call.positions, window, call.ring)
        fresh = attention(call.query, call.key, call.value, call.positions, window)
    real = call.positions >= 0
    assert_agree(fresh[real], out[real], "attention", torch.float64, "reference")


@given(rows(longest=30, most_before=8), windows, st.sampled_from([torch.float64, torch.bfloat16]), seeds)
def test_written_ring_holds_the_last_document_slot_by_slot(drawn, window, ring_dtype, seed):
    call = Call(drawn, window, torch.float64, seed)
    old = call.ring_keys.to(ring_dtype)
    ring = write_ring(old, call.key, call.positions)
    assert ring.dtype == ring_dtype
    for index, row in enumerate(drawn):
        if not row.num_tokens:
            assert torch.equal(ring[index], old[index])
            continue
        before, first, length = row.documents()[-1]
        document = torch.cat([call.keys_before[index][:before], call.key[index, first : first + length]]).to(ring_dtype)
        for place in range(max(0, len(document) - call.num_slots), len(document)):
            assert torch.equal(ring[index, place % call.num_slots], document[place])


@given(rows(longest=30, most_before=8), windows, seeds)
def test_no_slot_of_the_ring_is_written_twice(drawn, window, seed):
    """The gradient shows who was written: the last tokens of the last document, and nothing that stood there before."""
    call = Call(drawn, window, torch.float64, seed)
    ring = write_ring(call.ring_keys.requires_grad_(), call.key.requires_grad_(), call.positions)
    ring_gradient, key_gradient = torch.autograd.grad(ring.sum(), (call.ring_keys, call.key))
    for index, row in enumerate(drawn):
        written = torch.zeros(call.key.shape[1], dtype=torch.float64)
        if row.num_tokens:
            _, first, length = row.documents()[-1]
            written[max(first, first + length - call.num_slots) : first + length] = 1
        assert torch.equal(key_gradient[index], written[:, None].expand(-1, HEAD_SIZE))
        assert ring_gradient[index].sum() == HEAD_SIZE * (call.num_slots - written.sum())


@given(rows(longest=30, most_before=8), windows, seeds)
def test_ring_carried_over_chunks_equals_one_call(drawn, window, seed):
    call = Call(drawn, window, torch.float64, seed)
    expected = attention(call.query, call.key, call.value, call.positions, window, call.ring)
    keys, values, num_before = call.ring
    cuts = torch.randint(1, 5, (200,), generator=torch.Generator().manual_seed(seed)).cumsum(0).tolist()
    start, parts = 0, []
    while start < call.key.shape[1]:
        stop = min(next(cut for cut in cuts if cut > start), call.key.shape[1])
        key, value, positions = call.key[:, start:stop], call.value[:, start:stop], call.positions[:, start:stop]
        parts.append(attention(call.query[:, start:stop], key, value, positions, window, (keys, values, num_before)))
        keys, values = write_ring(keys, key, positions), write_ring(values, value, positions)
        num_before = torch.where((positions >= 0).any(dim=1), _newest(positions) + 1, num_before)
        start = stop
    real = call.positions >= 0
    assert_agree(torch.cat(parts, dim=1)[real], expected[real], "attention", torch.float64, "reference")
    visible = ring_positions(num_before, call.num_slots) >= 0
    assert torch.equal(keys[visible], write_ring(call.ring_keys, call.key, call.positions)[visible])
    assert torch.equal(values[visible], write_ring(call.ring_values, call.value, call.positions)[visible])


def _newest(positions: Tensor) -> Tensor:
    """Position of each row's last real token; padding stands only at the end."""
    last = (positions >= 0).sum(dim=1) - 1
    return positions.gather(1, last.clamp(min=0)[:, None])[:, 0]


@given(rows(), windows, st.sampled_from([2, 256]), seeds)
def test_gradients_equal_those_of_the_listed_keys(drawn, window, query_block_tokens, seed):
    call = Call(drawn, window, torch.float64, seed)
    leaves = [t.requires_grad_() for t in (call.query, call.key, call.value, call.ring_keys, call.ring_values)]
    weights = torch.randn(call.query.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = weights * (call.positions >= 0)[..., None, None]
    with mock.patch.object(reference, "QUERY_BLOCK_TOKENS", query_block_tokens):
        out = attention(call.query, call.key, call.value, call.positions, window, call.ring)
    found = torch.autograd.grad((out * weights).sum(), leaves)
    loss = torch.zeros((), dtype=torch.float64)
    for index, row in enumerate(drawn):
        for before, first, length in row.documents():
            here, known = slice(first, first + length), min(before, call.num_slots)
            slots = [place % call.num_slots for place in range(before - known, before)]
            key = torch.cat([call.ring_keys[index][slots], call.key[index, here]])
            value = torch.cat([call.ring_values[index][slots], call.value[index, here]])
            loss = loss + (attend(call.query[index, here], key, value, window, known) * weights[index, here]).sum()
    for gradient, expected in zip(found, torch.autograd.grad(loss, leaves), strict=True):
        assert_agree(gradient, expected, "attention gradient", torch.float64, "reference")


@given(st.integers(0, 50), st.integers(1, 9))
def test_ring_positions_are_the_newest_place_of_each_slot(num_tokens, num_slots):
    written = [-1] * num_slots
    for place in range(num_tokens):
        written[place % num_slots] = place
    found = ring_positions(torch.tensor([num_tokens]), num_slots)[0].tolist()
    assert [place if place >= 0 else -1 for place in found] == written
