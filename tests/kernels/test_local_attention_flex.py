"""FlexAttention's mask and blocks = the definition of attention, over documents, padding, windows and rings."""

from typing import Any
from unittest import mock

import pytest
import torch
from documents import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_local_attention import Call, seeds, windows
from tolerances import assert_agree
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import flex_attention
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


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts what is compiled; runs it by plain operators, with the gradient that torch refuses on a CPU."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flex._attend, fullgraph=True, backend=counter)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    return counter


def several_rows(num_rows: int, num_tokens: int, has_ring: bool, requires_grad: bool = False) -> dict[str, Any]:
    """Arguments of `attention`: rows that go on, with a document that starts in the middle."""
    generator = torch.Generator().manual_seed(num_tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(requires_grad)

    num_before = torch.arange(num_rows) * 50 * has_ring
    positions = num_before[:, None] + torch.arange(num_tokens)
    positions[0, num_tokens // 2 :] = torch.arange(num_tokens - num_tokens // 2)
    return {
        "query": normal(num_rows, num_tokens, 3, 16),
        "key": normal(num_rows, num_tokens, 16),
        "value": normal(num_rows, num_tokens, 16),
        "positions": positions,
        "window_tokens": 64,
        "ring": (normal(num_rows, 64, 16), normal(num_rows, 64, 16), num_before) if has_ring else None,
    }


def test_calls_of_all_lengths_are_two_compiled_forms_and_equal_the_definition(forms):
    """One for one row, one for several: a form more for every length would pass the limit at which torch gives up."""
    lengths = (300, 2, 128, 37, 500, 257, 64, 640)
    for num_rows in (1, 2, 3):
        for turn, num_tokens in enumerate(lengths):
            call = several_rows(num_rows, num_tokens, has_ring=turn % 2 == 0)
            found, expected = flex.attend_compiled(**call), reference.attention(**call)
            assert_agree(found, expected, "attention", torch.float32, "flex")
    assert forms.frame_count == 2


def test_gradients_of_the_compiled_form_equal_those_of_the_definition(forms):
    for num_tokens in (256, 200):
        call = several_rows(2, num_tokens, has_ring=False, requires_grad=True)
        leaves = [call[name] for name in ("query", "key", "value")]
        outputs = flex.attend_compiled(**call), reference.attention(**call)
        gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in outputs]
        for name, found, expected in zip(("query", "key", "value"), *gradients, strict=True):
            assert_agree(found, expected, "attention", torch.float32, "flex", name)
    assert forms.frame_count == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cpu_tensors_are_never_given_to_flex(dtype, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("flex")

    monkeypatch.setattr(flex, "attention", refuse)
    query, key = torch.randn(1, 4, 2, 16, dtype=dtype), torch.randn(1, 4, 16, dtype=dtype)
    positions = torch.arange(4)[None]
    found = operator.attention(query, key, key, positions, 2)
    assert torch.equal(found, reference.attention(query, key, key, positions, 2))
