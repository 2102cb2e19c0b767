"""Blocks cover an axis once and in order, however long it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_forms import with_blocks

from griffinlm.kernels.token_blocks import token_blocks


@given(num_tokens=st.integers(0, 70), width=st.integers(0, 9), num_numbers=st.integers(1, 300))
def test_blocks_cover_an_axis_once_in_powers_of_two_within_their_size(num_tokens, width, num_numbers):
    with with_blocks(num_numbers):
        blocks = token_blocks(torch.empty(2, num_tokens, width), axis=1)
    assert [token for block in blocks for token in range(num_tokens)[block]] == list(range(num_tokens))
    sizes = [block.stop - block.start for block in blocks]
    assert all(size.bit_count() == 1 for size in sizes[:-1])
    assert all(size == 1 or size * 2 * width <= num_numbers * torch.get_num_threads() for size in sizes)


@pytest.mark.parametrize("num_tokens", [1, 7])
def test_where_blocks_do_not_pay_there_is_one(num_tokens):
    with with_blocks(1):
        assert token_blocks(torch.empty(num_tokens, 3, device="meta")) == [slice(0, num_tokens)]
