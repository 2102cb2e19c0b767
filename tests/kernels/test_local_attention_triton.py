"""The decode kernel, interpreted or on a GPU = attention over the ring in float64; the ring as defined."""

import pytest
import torch
from device import DEVICE
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels.local_attention import operator
from griffinlm.kernels.local_attention.operator import decode_attention
from griffinlm.kernels.local_attention.reference import attention, write_ring

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned")


def draw(positions: list[int], num_slots: int, num_places: int, num_heads: int, head_size: int, dtype, ring_dtype):
    """Arguments of `decode_attention`: every row has a slot of its own, in no order, and unread places hold NaN."""
    generator = torch.Generator().manual_seed(num_places)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num_rows = len(positions)
    slots = torch.randperm(num_slots, generator=generator)[:num_rows]
    rings = [normal(num_slots, num_places, head_size).to(ring_dtype) for _ in range(2)]
    for slot, position in zip(slots, positions, strict=True):
        for ring in rings:
            ring[slot, max(position, 0) :] = torch.nan
    query = normal(num_rows, num_heads, head_size).to(dtype)
    key, value = (normal(num_rows, head_size).to(dtype) for _ in range(2))
    return tuple(t.to(DEVICE) for t in (query, key, value, *rings, slots, torch.tensor(positions)))


def by_definition(query, key, value, keys, values, slots, positions) -> tuple[Tensor, Tensor, Tensor]:
    """Output and both rings of one token, in float64; key and value rounded as the ring rounds them."""
    new = [t.to(ring.dtype).double()[:, None] for t, ring in ((key, keys), (value, values))]
    rings = [ring[slots].double().nan_to_num() for ring in (keys, values)]
    here = positions[:, None]
    num_places = keys.shape[1]
    out = attention(query.double()[:, None], *new, here, num_places, (*rings, positions.clamp(min=0)))
    out = torch.where(here[..., None] >= 0, out[:, 0], 0.0)
    return out, *(write_ring(ring, token, here) for ring, token in zip(rings, new, strict=True))


def assert_decode_equals_definition(arguments: tuple[Tensor, ...]) -> None:
    query, _, _, keys, values, slots, positions = arguments
    expected, *expected_rings = by_definition(*arguments)
    before = [ring.clone() for ring in (keys, values)]
    out = decode_attention(*arguments)
    assert out.dtype == query.dtype
    assert_agree(out, expected, "attention", query.dtype, "triton")
    for ring, old, new in zip((keys, values), before, expected_rings, strict=True):
        untouched = torch.ones(ring.shape[:2], dtype=torch.bool, device=DEVICE)
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            if position >= 0:
                place = position % ring.shape[1]
                untouched[slot, place] = False
                assert torch.equal(ring[slot, place].double(), new[row, place])
        torch.testing.assert_close(ring[untouched], old[untouched], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ring_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_decode_equals_definition_at_every_filling_of_the_ring(dtype, ring_dtype):
    """A ring of 37 places: empty, begun, one short of full, full, wrapped once and often; one row stands still."""
    assert_decode_equals_definition(draw([0, 1, 36, 37, 38, 100, -1], 9, 37, 3, 5, dtype, ring_dtype))


@pytest.mark.parametrize("num_heads", [1, 10, 17])
def test_decode_equals_definition_where_the_ring_is_split(num_heads):
    """Three programs of 64 places; the last is not full, and the first position leaves two of them with nothing."""
    arguments = draw([3, 150, 400], 3, 150, num_heads, 20, torch.float32, torch.float32)
    assert operator._kernels().choose_split(3, 150, 4) == 64
    assert_decode_equals_definition(arguments)


def test_tokens_one_by_one_equal_one_call():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 9, 2, 4, generator=generator)
    key, value = (torch.randn(2, 9, 4, generator=generator) for _ in range(2))
    positions = torch.arange(9).expand(2, -1)
    keys, values = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    expected = attention(query.double(), key.double(), value.double(), positions, 4)
    query, key, value, positions, keys, values = (t.to(DEVICE) for t in (query, key, value, positions, keys, values))
    slots = torch.tensor([1, 0], device=DEVICE)
    for t in range(9):
        out = decode_attention(query[:, t], key[:, t], value[:, t], keys, values, slots, positions[:, t])
        assert_agree(out, expected[:, t], "attention", torch.float32, "triton")


def test_large_scores_give_no_nan():
    query, *others = draw([5, 37], 2, 37, 2, 4, torch.float32, torch.float32)
    assert_decode_equals_definition((query * 1000, *others))


def test_operator_keeps_the_promises_that_torch_makes_for_it():
    query, key, value, keys, values, slots, _ = draw([8, 3], 2, 8, 2, 4, torch.float32, torch.float32)
    positions = torch.tensor([8, 3], device=DEVICE)
    arguments = (query, key, value, keys.nan_to_num(), values.nan_to_num(), slots, positions)
    torch.library.opcheck(decode_attention, arguments)


@pytest.mark.parametrize("num_rows", [1, 3, 64])
@pytest.mark.parametrize("num_places", [1, 37, 2048, 32_768])
def test_split_has_at_most_as_many_parts_as_are_joined_at_once(num_rows, num_places):
    kernels = operator._kernels()
    split = kernels.choose_split(num_rows, num_places, 132)
    assert split.bit_count() == 1
    assert -(-num_places // split) <= kernels.MOST_SPLITS
    assert split == kernels.SMALLEST_SPLIT or num_rows * num_places // split <= kernels.PROGRAMS_A_PROCESSOR * 132
