"""Which attention runs where, and the step of a decoder as one operator of torch."""

from typing import Any

import torch
from torch import Tensor

from griffinlm.kernels.device import num_processors, require_triton
from griffinlm.kernels.local_attention import reference

SMALLEST_FLEX_HEAD = 16


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window_tokens: int | None,
    ring: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """What `reference.attention` computes: on a GPU, in 16 bits and for several tokens, by FlexAttention.

    Raises:
        KernelError: the tensors are on a GPU and Triton is not installed.
    """
    is_wide = query.shape[1] > 1 and query.shape[-1] >= SMALLEST_FLEX_HEAD
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and is_wide:
        require_triton()
        from griffinlm.kernels.local_attention import flex

        return flex.attention(query, key, value, positions, window_tokens, ring)
    return reference.attention(query, key, value, positions, window_tokens, ring)


@torch.library.custom_op("griffinlm::decode_attention", mutates_args=("keys", "values"))
def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, positions: Tensor
) -> Tensor:
    """One token a row: `reference.attention` over the ring of its slot, then `reference.write_ring` in place.

    Args:
        query: [B, N, H]. key, value: [B, H], after RoPE.
        keys, values: [X, S, H] contiguous, the rings of all slots, slot by slot; changed in place.
        slots: [B], the slot of each row, no two equal but for rows that stand still.
        positions: [B], the token's place in its document; -1 for a row that stands still: it writes nothing and its
            output is zero.

    Returns:
        [B, N, H].

    Raises:
        KernelError: Triton is not installed.
    """
    assert keys.is_contiguous()
    assert values.is_contiguous()
    kernels = _kernels()
    split_places = kernels.choose_split(query.shape[0], keys.shape[1], num_processors(query.device))
    query, key, value, slots, positions = (t.contiguous() for t in (query, key, value, slots, positions))
    return kernels.decode(query, key, value, keys, values, slots, positions, split_places)


@decode_attention.register_fake
def _(query, key, value, keys, values, slots, positions):
    return query.new_empty(query.shape)


def _kernels() -> Any:
    """The kernels' module, imported where it is needed: most machines have no Triton."""
    require_triton()
    from griffinlm.kernels.local_attention import triton

    return triton
