"""Cross-entropy over chunks = its definition, in values and gradients."""

from functools import partial

import pytest
import torch
from kernel_forms import BLOCKS, DTYPES, assert_equals_definition, normal, with_blocks

from griffinlm.kernels.cross_entropy import chunked, reference

LABELS = torch.tensor([0, 10, -100, 3, 4, 5, -1, 1, 1, 1, 2, -100])


def drawn(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {"x": normal(12, 8, dtype=dtype), "embedding": normal(11, 8, dtype=dtype, seed=1)}


@pytest.mark.parametrize("num_numbers", BLOCKS)
@pytest.mark.parametrize("chunk_tokens", [1, 5, 12, 100])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_equal_the_definition(dtype, soft_cap, chunk_tokens, num_numbers):
    fixed = {"labels": LABELS, "soft_cap": soft_cap}
    with with_blocks(num_numbers):
        assert_equals_definition(
            partial(chunked.cross_entropy, **fixed, chunk_tokens=chunk_tokens),
            partial(reference.cross_entropy, **fixed),
            drawn(dtype),
        )


@pytest.mark.parametrize("soft_cap", [None, 2.0])
def test_gradients_equal_finite_differences(soft_cap):
    leaves = tuple(value.requires_grad_() for value in drawn(torch.float64).values())
    operator = partial(chunked.cross_entropy, labels=LABELS, soft_cap=soft_cap, chunk_tokens=5)
    with with_blocks(24):
        assert torch.autograd.gradcheck(operator, leaves)


@pytest.mark.parametrize("name", ["x", "embedding"])
def test_a_gradient_alone_equals_that_beside_the_other(name):
    def gradient(*names: str) -> torch.Tensor:
        inputs = {n: v.requires_grad_(n in names) for n, v in drawn(torch.float64).items()}
        loss = chunked.cross_entropy(**inputs, labels=LABELS, soft_cap=2.0, chunk_tokens=5)
        return torch.autograd.grad(loss, inputs[name])[0]

    assert torch.equal(gradient(name), gradient("x", "embedding"))


def test_without_gradients_the_loss_has_the_same_bits():
    inputs = {"labels": LABELS, "soft_cap": 2.0, "chunk_tokens": 5}
    leaves = {name: value.requires_grad_() for name, value in drawn(torch.float32).items()}
    with torch.no_grad():
        alone = chunked.cross_entropy(**leaves, **inputs)
    assert not alone.requires_grad
    assert torch.equal(alone, chunked.cross_entropy(**leaves, **inputs).detach())


def test_autocast_equals_the_definition_under_autocast():
    leaves = {name: value.requires_grad_() for name, value in drawn(torch.float32).items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked.cross_entropy(**leaves, labels=LABELS, soft_cap=2.0, chunk_tokens=5)
        expected = reference.cross_entropy(**leaves, labels=LABELS, soft_cap=2.0)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        *(torch.autograd.grad(loss, list(leaves.values())) for loss in (found, expected)), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("soft_cap", [None, 30.0])
def test_large_logits_give_finite_losses_and_gradients(soft_cap):
    leaves = {name: (1e3 * value).requires_grad_() for name, value in drawn(torch.float32).items()}
    found = chunked.cross_entropy(**leaves, labels=LABELS, soft_cap=soft_cap, chunk_tokens=5)
    expected = reference.cross_entropy(**leaves, labels=LABELS, soft_cap=soft_cap)
    torch.testing.assert_close(found, expected)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found, list(leaves.values())))


def test_no_label_gives_no_loss_and_no_gradient():
    leaves = {name: value.requires_grad_() for name, value in drawn(torch.float32).items()}
    labels = torch.full_like(LABELS, -100)
    loss = chunked.cross_entropy(**leaves, labels=labels, soft_cap=2.0, chunk_tokens=5)
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, list(leaves.values())))
