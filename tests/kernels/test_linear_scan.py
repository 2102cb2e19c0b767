"""The chunked RG-LRU = the loop over time, in values, final state and every gradient; the loop = finite differences."""

from typing import Any

import pytest
import torch
from kernel_forms import with_blocks
from tolerances import assert_agree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from griffinlm.kernels.linear_scan import chunked, reference

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
GRADIENTS = ("x", "input_gate", "recurrence_gate", "a_param", "initial")

Inputs = dict[str, Any]


def draw(
    num_rows: int, num_tokens: int, width: int, dtype: torch.dtype, seed: int = 0, reset_share: float = 0.15
) -> Inputs:
    """Inputs of `rg_lru` whose decays cover 0.4 to 0.9999, with several resets a row."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(num_rows, num_tokens, width).to(dtype),
        "input_gate": (2 * normal(num_rows, num_tokens, width)).to(dtype),
        "recurrence_gate": (2 * normal(num_rows, num_tokens, width)).to(dtype),
        "a_param": torch.linspace(-9.0, -2.0, width).to(dtype),
        "reset": torch.rand(num_rows, num_tokens, generator=generator) < reset_share,
        "initial": normal(num_rows, width).to(torch.promote_types(dtype, torch.float32)),
    }


def run(operator, inputs: Inputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, final state, and the gradients of a loss that reads both with fixed random weights."""
    leaves = {n: v.detach().requires_grad_() if n in GRADIENTS else v for n, v in inputs.items()}
    y, final = operator(**leaves)
    generator = torch.Generator().manual_seed(1)
    loss = (y.double() * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum()
    loss = loss + (final.double() * torch.randn(final.shape, generator=generator, dtype=torch.float64)).sum()
    gradients = torch.autograd.grad(loss, [leaves[name] for name in GRADIENTS])
    return y, final, dict(zip(GRADIENTS, gradients, strict=True))


def assert_chunked_equals_loop(inputs: Inputs) -> None:
    dtype = inputs["x"].dtype
    state_dtype = torch.promote_types(dtype, torch.float32)
    y, final, gradients = run(chunked.rg_lru, inputs)
    expected_y, expected_final, expected_gradients = run(reference.rg_lru, inputs)
    assert (y.dtype, final.dtype) == (dtype, state_dtype) == (expected_y.dtype, expected_final.dtype)
    assert_agree(y, expected_y, "rg_lru", dtype, "chunked", "y")
    assert_agree(final, expected_final, "rg_lru", state_dtype, "chunked", "final state")
    for name, expected in expected_gradients.items():
        assert gradients[name].dtype == inputs[name].dtype
        assert_agree(gradients[name], expected, "rg_lru gradient", dtype, "chunked", f"gradient of {name}")


@pytest.mark.parametrize("num_tokens", range(1, 71))
def test_chunked_equals_loop_at_every_length(num_tokens):
    assert_chunked_equals_loop(draw(2, num_tokens, 3, torch.float64, seed=num_tokens))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_tokens", "width"), [(1, 1, 1), (3, 2, 5), (2, 37, 7), (1, 257, 3), (5, 64, 1)]
)
def test_chunked_equals_loop_in_every_type(dtype, num_rows, num_tokens, width):
    assert_chunked_equals_loop(draw(num_rows, num_tokens, width, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_numbers", [1, 24, 50])
@pytest.mark.parametrize("lengths", [None, [0, 7, 23]])
def test_blocks_equal_loop(dtype, num_numbers, lengths):
    """Blocks of one token, two and four, the last of them not full."""
    inputs = draw(3, 23, 4, dtype)
    inputs["lengths"] = None if lengths is None else torch.tensor(lengths)
    with with_blocks(num_numbers):
        assert_chunked_equals_loop(inputs)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 9, 10, 31])
def test_chunked_equals_loop_where_rows_have_lengths(dtype, num_tokens):
    inputs = draw(5, num_tokens, 3, dtype)
    inputs["lengths"] = torch.tensor([0, 1, num_tokens // 2, num_tokens - 1, num_tokens])
    assert_chunked_equals_loop(inputs)


@pytest.mark.parametrize("operator", [chunked.rg_lru, reference.rg_lru])
def test_row_with_padding_equals_the_row_alone(operator):
    inputs = draw(4, 13, 3, torch.float64)
    lengths = [0, 1, 7, 13]
    y, final, gradients = run(operator, {**inputs, "lengths": torch.tensor(lengths)})
    torch.testing.assert_close(final[0], inputs["initial"][0], rtol=0, atol=0)
    for row, length in enumerate(lengths):
        assert not y[row, length:].any()
        assert not any(gradients[name][row, length:].any() for name in ("x", "input_gate", "recurrence_gate"))
        if length:
            alone = {n: v[row : row + 1] for n, v in inputs.items() if n != "a_param"}
            alone = {n: v[:, :length] if v.ndim > 2 or n == "reset" else v for n, v in alone.items()}
            alone_y, alone_final = operator(**alone, a_param=inputs["a_param"])
            assert_agree(y[row, :length], alone_y[0], "rg_lru", torch.float64, "chunked")
            assert_agree(final[row], alone_final[0], "rg_lru", torch.float64, "chunked")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("a_param", [-200.0, -40.0, 40.0])
@pytest.mark.parametrize("gate", [-60.0, 0.0, 60.0])
def test_extreme_decays_give_no_nan_and_equal_the_loop(dtype, a_param, gate):
    """a_param -200 gives a = 1 exactly, where the derivative of the square root is held to 1,000; 40 gives a = 0."""
    inputs = draw(2, 11, 4, dtype)
    inputs["a_param"] = torch.full((4,), a_param, dtype=dtype)
    inputs["recurrence_gate"] = torch.full((2, 11, 4), gate, dtype=dtype)
    assert_chunked_equals_loop(inputs)


def test_decay_of_one_keeps_the_state_and_lets_nothing_in():
    inputs = draw(2, 20, 3, torch.float32, reset_share=0.0)
    inputs["a_param"] = torch.full((3,), -200.0)
    y, final = chunked.rg_lru(**inputs)
    assert torch.equal(final, inputs["initial"])
    assert torch.equal(y, inputs["initial"][:, None].expand_as(y))


@pytest.mark.parametrize("operator", [chunked.rg_lru, reference.rg_lru])
def test_reset_forgets_the_state_and_takes_the_first_input_unscaled(operator):
    inputs = draw(2, 6, 3, torch.float64, reset_share=0.0)
    inputs["reset"][:, [0, 4]] = True
    y, _, gradients = run(operator, inputs)
    for start in (0, 4):
        expected = torch.sigmoid(inputs["input_gate"][:, start]) * inputs["x"][:, start]
        assert_agree(y[:, start], expected, "rg_lru", torch.float64, "chunked")
        assert not gradients["recurrence_gate"][:, start].any()
    assert not gradients["initial"].any()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_chunked_equals_loop_where_documents_are_one_two_and_three_tokens(every):
    inputs = draw(2, 29, 3, torch.float64)
    inputs["reset"] = (torch.arange(29) % every == 0).expand(2, 29)
    assert_chunked_equals_loop(inputs)


def test_inputs_need_not_be_contiguous():
    inputs = draw(3, 17, 5, torch.float64)
    expected = run(chunked.rg_lru, inputs)
    matrices = {n: v for n, v in inputs.items() if v.ndim > 1}
    transposed = {n: v.transpose(0, 1).contiguous().transpose(0, 1) for n, v in matrices.items()}
    strided = {n: torch.stack([v, v], dim=-1).flatten(-2)[..., ::2] for n, v in inputs.items()}
    for variant in (transposed, strided):
        assert not variant["x"].is_contiguous()
        y, final, gradients = run(chunked.rg_lru, {**inputs, **variant})
        assert_agree(y, expected[0], "rg_lru", torch.float64, "chunked")
        assert_agree(final, expected[1], "rg_lru", torch.float64, "chunked")
        for name, gradient in gradients.items():
            assert_agree(gradient, expected[2][name], "rg_lru gradient", torch.float64, "chunked", name)


def test_expanded_inputs_equal_their_copies():
    inputs = draw(3, 8, 4, torch.float64)
    inputs["x"] = inputs["x"][:1, :, :1].expand(3, 8, 4)
    inputs["initial"] = inputs["initial"][:1].expand(3, 4)
    copied = {n: v.contiguous() for n, v in inputs.items()}
    for found, expected in zip(chunked.rg_lru(**inputs), chunked.rg_lru(**copied), strict=True):
        assert_agree(found, expected, "rg_lru", torch.float64, "chunked")


def test_inputs_are_left_as_they_were():
    inputs = draw(2, 12, 3, torch.float32)
    before = {n: v.clone() for n, v in inputs.items()}
    run(chunked.rg_lru, inputs)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


@pytest.mark.parametrize("operator", [reference.rg_lru, chunked.rg_lru])
@pytest.mark.parametrize("lengths", [None, [0, 3, 5]])
def test_gradients_equal_finite_differences(operator, lengths):
    """Through the outputs and through the final state, with resets at the start, mid-row and twice in a row."""
    inputs = draw(3, 5, 2, torch.float64)
    inputs["a_param"] = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    inputs["reset"] = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    inputs["lengths"] = None if lengths is None else torch.tensor(lengths)

    def of_leaves(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return operator(**{**inputs, **dict(zip(GRADIENTS, leaves, strict=True))})

    leaves = tuple(inputs[name].clone().requires_grad_() for name in GRADIENTS)
    assert torch.autograd.gradcheck(of_leaves, leaves)


def test_derivative_of_the_square_root_is_exact_above_its_bound_and_at_most_a_thousand():
    z = torch.tensor([0.0, 1e-12, 2.4e-7, 2.6e-7, 0.01, 1.0], dtype=torch.float64, requires_grad=True)
    reference.BoundedSqrt.apply(z).sum().backward()
    expected = [1000.0, 1000.0, 1000.0, *(0.5 * value**-0.5 for value in (2.6e-7, 0.01, 1.0))]
    torch.testing.assert_close(z.grad, torch.tensor(expected, dtype=torch.float64))


def test_second_derivatives_are_refused():
    """The chunked form keeps h for its backward without its history: a second derivative would be silently wrong."""
    inputs = draw(1, 4, 2, torch.float64)
    inputs["x"].requires_grad_()
    y, _ = chunked.rg_lru(**inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 16, 17, 50])
def test_linear_scan_equals_its_recurrence_for_decays_in_zero_to_one(num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    decay = torch.rand(2, num_tokens, 6, generator=generator, dtype=torch.float64)
    decay[..., 0], decay[..., 1] = 0.0, 1.0
    inputs = torch.randn(2, num_tokens, 6, generator=generator, dtype=torch.float64)
    h = initial = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    expected = torch.stack([h := decay[:, t] * h + inputs[:, t] for t in range(num_tokens)], dim=1)
    assert_agree(chunked.linear_scan(decay, inputs, initial), expected, "rg_lru", torch.float64, "chunked")


class CountedOperations(TorchDispatchMode):
    """How many of torch's operators ran that write numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operations = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += operator in (torch.ops.aten.addcmul_.default, torch.ops.aten.mul_.Tensor)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("num_tokens", "allowed"), [(2, 4), (64, 24), (1000, 96), (1024, 96), (1025, 160)])
def test_a_scan_takes_operators_by_the_root_of_its_length(num_tokens, allowed):
    decay, inputs = torch.rand(2, num_tokens, 3), torch.randn(2, num_tokens, 3)
    with CountedOperations() as counted:
        chunked.linear_scan(decay, inputs, torch.zeros(2, 3))
    assert 0 < counted.num_operations <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [64, 2048])
def test_drift_from_float64_stays_within_its_bound_at_any_length(dtype, num_tokens):
    """Inputs and decays as in a new model. Against float64 of the same rounded inputs the state is exact to float32."""
    exact = draw(1, num_tokens, 64, torch.float64, reset_share=0.0)
    exact["initial"] = torch.zeros(1, 64, dtype=torch.float64)
    decay = torch.linspace(0.9, 0.999, 64, dtype=torch.float64)
    exact["a_param"] = torch.log(1.0 / decay - 1.0)
    rounded = {n: v.to(dtype) if v.is_floating_point() else v for n, v in exact.items()}
    rounded["initial"] = exact["initial"].float()
    y, final = chunked.rg_lru(**rounded)
    expected_y, expected_final = chunked.rg_lru(**exact)
    assert_agree(y, expected_y, "rg_lru drift", dtype, "chunked")
    assert_agree(final, expected_final, "rg_lru drift", dtype, "chunked")
    _, exact_final = chunked.rg_lru(**{n: v.double() if n != "reset" else v for n, v in rounded.items()})
    assert final.dtype == torch.float32
    assert_agree(final, exact_final, "rg_lru drift", torch.float32, "chunked")
