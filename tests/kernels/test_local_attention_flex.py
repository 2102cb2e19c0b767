"""FlexAttention's mask and blocks = the definition of attention, over documents, padding, windows and rings."""

from unittest import mock

import pytest
import torch
from documents import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_attention import Call, seeds, windows
from tolerances import assert_agree
from torch.nn.attention.flex_attention import create_mask

from griffinlm.kernels.local_attention import flex, operator, reference


@settings(max_examples=20)
@given(rows(), windows, seeds, st.booleans())
def test_mask_shows_the_keys_of_the_definition(drawn, window, seed, has_ring):
    call = Call(drawn, window, torch.float64, seed)
    positions = call.positions
    ring = call.ring if has_ring else None
    key, value, places = flex.with_ring(call.key, call.value, ring)
    mask = flex.block_mask(positions, places, window)
    visible = create_mask(mask.mask_mod, len(drawn), None, positions.shape[1], places.shape[1], device="cpu")
    scores = torch.einsum("btnh,bkh->bntk", call.query, key) / call.query.shape[-1] ** 0.5
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    found = torch.einsum("bntk,bkh->btnh", weights, value)
    expected = reference.attention(call.query, call.key, call.value, positions, window, ring)
    assert_agree(found, expected, "attention", torch.float64, "reference")


@pytest.mark.parametrize(("num_tokens", "window"), [(5, 3), (300, 64), (300, None)])
@pytest.mark.parametrize("has_ring", [True, False])
def test_flex_equals_definition(num_tokens, window, has_ring):
    """Rows that go on, start anew inside the call, and end in padding; several blocks of queries."""
    generator = torch.Generator().manual_seed(num_tokens)
    num_before = torch.tensor([0, 70, 7]) if has_ring else torch.zeros(3, dtype=torch.int64)
    positions = num_before[:, None] + torch.arange(num_tokens)
    positions[1, num_tokens // 2 :] = torch.arange(num_tokens - num_tokens // 2)
    positions[2, -2:] = -1
    query = torch.randn(3, num_tokens, 2, 16, generator=generator)
    key, value = (torch.randn(3, num_tokens, 16, generator=generator) for _ in range(2))
    keys, values = (torch.randn(3, window or 400, 16, generator=generator) for _ in range(2))
    ring = (keys, values, num_before) if has_ring else None
    found = flex.attention(query, key, value, positions, window, ring)
    expected = reference.attention(query, key, value, positions, window, ring)
    assert_agree(found, expected, "attention", torch.float32, "flex")


@given(st.integers(1, 60), st.integers(0, 40), st.one_of(st.none(), st.integers(1, 50)), st.sampled_from([1, 4, 8, 16]))
def test_every_key_that_a_query_may_see_lies_in_its_blocks(num_tokens, num_before, window, block):
    """And at most a block before the window's keys is read in vain, where the ring is out of sight."""
    with mock.patch.object(flex, "BLOCK_TOKENS", block):
        first, last = flex.visible_blocks(num_tokens, num_before + num_tokens, window)
    for index in range(-(-num_tokens // block)):
        queries = range(index * block, min((index + 1) * block, num_tokens))
        reach = num_tokens + num_before if window is None else window
        chunk = [num_before + key for q in queries for key in range(max(0, q - reach), q + 1)]
        ring = range(num_before) if queries[0] < reach else []
        seen = {key // block for key in (*chunk, *ring)}
        assert (int(first[index]), int(last[index])) == (min(seen), max(seen))


@given(rows(), windows, seeds, st.sampled_from([2, 4]))
def test_block_mask_counts_and_orders_the_blocks_of_the_mask(drawn, window, seed, block):
    call = Call(drawn, window, torch.float32, seed)
    num_keys = call.positions.shape[1] + call.num_slots
    places = torch.zeros(len(drawn), num_keys, dtype=torch.int64)
    with mock.patch.object(flex, "BLOCK_TOKENS", block):
        mask = flex.block_mask(call.positions, places, window)
        first, last = flex.visible_blocks(call.positions.shape[1], num_keys, window)
    dense = mask.to_dense()[0, 0]
    column = torch.arange(dense.shape[1])
    assert torch.equal(dense.bool(), (column >= first[:, None]) & (column <= last[:, None]))
    assert mask.q_indices is not None  # What the backward pass goes by.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cpu_tensors_are_never_given_to_flex(dtype, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("flex")

    monkeypatch.setattr(flex, "attention", refuse)
    query, key = torch.randn(1, 4, 2, 16, dtype=dtype), torch.randn(1, 4, 16, dtype=dtype)
    positions = torch.arange(4)[None]
    found = operator.attention(query, key, key, positions, 2)
    assert torch.equal(found, reference.attention(query, key, key, positions, 2))
