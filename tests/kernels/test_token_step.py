"""The kernels of a decoder's step, interpreted or on a GPU = their definitions in float64 from the same numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device import DEVICE, precise
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels.token_step import launch, reference
from griffinlm.kernels.token_step.reference import Linear, Norm

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned")

DTYPES = [torch.float32, torch.bfloat16]
NUM_ROWS = [1, 2, 17]
WIDTH, NUM_OUTPUTS = 37, 21
"""Of several tiles of inputs and of outputs, the last of them not full."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop goes round more than once."""

    def shrink(choose: Callable[..., launch.Tile]) -> Callable[..., launch.Tile]:
        return lambda *sizes: choose(*sizes)._replace(num_inputs=16)

    for name in ("choose_tile", "choose_gate_tile"):
        monkeypatch.setattr(launch, name, shrink(getattr(launch, name)))


class Draw:
    """Random tensors of one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        drawn = torch.randn(*shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(dtype or self.dtype).to(DEVICE)

    def linear(self, *shape: int, has_bias: bool = True) -> Linear:
        return Linear(self(*shape) / shape[-1] ** 0.5, self(*shape[:1]) if has_bias else None)

    def gates(self, num_blocks: int, width: int) -> Linear:
        return Linear(self(num_blocks, width, width) / width**0.5, self(num_blocks, width))

    def norm(self) -> Norm:
        return Norm(self(WIDTH), 1e-3)


def assert_equals_definition(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """The results, and the arguments that are changed in place."""
    expected_arguments = precise(arguments)
    expected = getattr(reference, name)(*expected_arguments)
    found = getattr(launch, name)(*arguments)
    pairs = [(found, expected)] if isinstance(found, Tensor) else list(zip(found, expected, strict=True))
    for ours, theirs in pairs:
        assert ours.dtype == next((given for given in arguments if isinstance(given, torch.dtype)), dtype)
        assert_agree(ours, theirs, "token step", dtype, "triton", name)
    for argument, kept in zip(arguments, expected_arguments, strict=True):
        if isinstance(argument, Tensor) and argument.is_floating_point():
            assert_agree(argument, kept, "token step", dtype, "triton", f"{name}, in place")


def places(num_rows: int) -> tuple[Tensor, Tensor]:
    """Slots in no order, one of which nobody has, and positions: the first tokens of a document, and later ones."""
    slots = torch.randperm(num_rows + 1, generator=torch.Generator().manual_seed(1))[:num_rows]
    positions = torch.tensor([2, 0, 1, 5, 3, 70_000] * num_rows)[:num_rows]
    return slots.to(DEVICE), positions.to(DEVICE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_with_what_stands_around_them(dtype, num_rows, has_bias):
    draw = Draw(dtype)
    x, layer = draw(num_rows, WIDTH), draw.linear(NUM_OUTPUTS, WIDTH, has_bias=has_bias)
    assert_equals_definition("linear", dtype, x, layer)
    assert_equals_definition("linear", dtype, x, layer, None, draw(num_rows, NUM_OUTPUTS))
    assert_equals_definition("linear", dtype, x, layer, draw.norm(), None, 3.0, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_hidden_numbers_of_a_gated_mlp(dtype, num_rows, has_bias):
    draw = Draw(dtype)
    gate, up = (draw.linear(NUM_OUTPUTS, WIDTH, has_bias=has_bias) for _ in range(2))
    assert_equals_definition("gated_hidden", dtype, draw(num_rows, WIDTH), draw.norm(), gate, up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("num_taps", [1, 2, 4])
def test_inputs_of_a_recurrence_and_the_tail_of_its_convolution(dtype, num_rows, num_taps):
    draw = Draw(dtype)
    into, gate = (draw.linear(NUM_OUTPUTS, WIDTH) for _ in range(2))
    taps, tails = Linear(draw(num_taps, NUM_OUTPUTS), draw(NUM_OUTPUTS)), draw(num_rows + 1, num_taps - 1, NUM_OUTPUTS)
    arguments = (draw(num_rows, WIDTH), draw.norm(), into, gate, taps, tails, *places(num_rows))
    assert_equals_definition("recurrent_inputs", dtype, *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize(("num_blocks", "block_width"), [(1, 37), (3, 16), (4, 5)])
def test_outputs_of_a_recurrence_and_its_memory(dtype, num_rows, num_blocks, block_width):
    draw, width = Draw(dtype), num_blocks * block_width
    gates = [draw.gates(num_blocks, block_width) for _ in range(2)]
    a_param = torch.linspace(-9.0, 2.0, width).to(dtype).to(DEVICE)
    hidden = draw(num_rows + 1, width, dtype=torch.float32)
    arguments = (draw(num_rows, width), draw(num_rows, width), *gates, a_param, hidden, *places(num_rows))
    assert_equals_definition("recurrent_outputs", dtype, *arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize(("num_heads", "head_size", "num_frequencies"), [(1, 4, 2), (3, 22, 5), (2, 7, 3), (2, 5, 0)])
def test_inputs_of_attention(dtype, num_rows, num_heads, head_size, num_frequencies):
    """Heads that turn whole, in part and not at all, and with an odd channel."""
    draw = Draw(dtype)
    query, key, value = (draw.linear(size * head_size, WIDTH, has_bias=False) for size in (num_heads, 1, 1))
    # float64 and float32 agree about angles of whole numbers.
    frequencies = (2.0 ** -torch.arange(num_frequencies)).to(DEVICE)
    positions = places(num_rows)[1]
    arguments = (draw(num_rows, WIDTH), draw.norm(), query, key, value, positions, frequencies)
    assert_equals_definition("attention_inputs", dtype, *arguments)


@torch.inference_mode()
def test_rows_that_stand_still_share_a_slot_and_disturb_nobody():
    draw = Draw(torch.float32)
    gates, a_param = [draw.gates(2, 5) for _ in range(2)], draw(10)
    u, gate, hidden = draw(3, 10), draw(3, 10), draw(4, 10)
    slots, positions = torch.tensor([1, 3, 3], device=DEVICE), torch.tensor([4, -1, -1], device=DEVICE)
    alone = hidden.clone()
    out = launch.recurrent_outputs(u, gate, *gates, a_param, hidden, slots, positions)
    one = launch.recurrent_outputs(u[:1], gate[:1], *gates, a_param, alone, slots[:1], positions[:1])
    assert_agree(out[:1], one, "token step", "float32", "triton")
    assert_agree(hidden[:3], alone[:3], "token step", "float32", "triton")
    assert out.isfinite().all()
    assert hidden.isfinite().all()


@pytest.mark.parametrize("num_rows", [1, 2, 16, 17, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_outputs", [1, 2560, 15_360, 256_000])
def test_tiles_fit_their_rows_and_fill_the_device(monkeypatch, num_rows, dtype, num_outputs):
    monkeypatch.undo()
    tile = launch.choose_tile(num_rows, dtype, 2560, num_outputs, 132)
    assert tile.num_rows >= num_rows
    assert all(size.bit_count() == 1 for size in tile[:-1])
    num_programs = -(-num_outputs // tile.num_outputs)
    assert num_programs >= min(132, num_outputs // 16)
    assert (tile.num_rows + tile.num_outputs) * tile.num_inputs * dtype.itemsize * tile.num_stages < 163 * 1024
