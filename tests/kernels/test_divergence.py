"""Learning from a teacher in chunks: the plain loss and its gradients, whatever the chunks; nothing for the teacher."""

import pytest
import torch

from griffinlm.kernels.divergence.chunked import divergence
from griffinlm.kernels.divergence.reference import Head
from griffinlm.kernels.divergence.reference import divergence as reference

VOCAB, WIDTH, OTHER_WIDTH = 37, 6, 9


def given(dtype: torch.dtype, cap: float | None, other_cap: float | None, num_tokens: int = 23):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, VOCAB, (num_tokens,), generator=generator)
    labels[::5] = -100
    head = Head(draw(VOCAB, WIDTH).requires_grad_(), cap)
    teacher = Head(draw(VOCAB, OTHER_WIDTH).requires_grad_(), other_cap)
    return draw(num_tokens, WIDTH).requires_grad_(), head, labels, draw(num_tokens, OTHER_WIDTH), teacher


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("caps", [(None, None), (3.0, None), (None, 2.0), (4.0, 3.0)])
@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_loss_and_gradients_are_those_of_the_reference(dtype, tolerance, share, caps, chunk_tokens):
    x, head, labels, expected, teacher = given(dtype, *caps)
    wanted = reference(x, head, labels, expected, teacher, share)
    found = divergence(x, head, labels, expected, teacher, share, chunk_tokens)
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    ways = [torch.autograd.grad(3.0 * loss, (x, head.embedding)) for loss in (found, wanted)]
    for one, other in zip(*ways, strict=True):
        torch.testing.assert_close(one, other, rtol=10 * tolerance, atol=10 * tolerance)


def test_the_teacher_has_no_gradient():
    x, head, labels, expected, teacher = given(torch.float32, None, None)
    expected.requires_grad_()
    divergence(x, head, labels, expected, teacher, 0.5, 8).backward()
    assert teacher.embedding.grad is None
    assert expected.grad is None
    assert x.grad is not None


def test_without_a_gradient_to_take_the_loss_has_the_same_bits():
    x, head, labels, expected, teacher = given(torch.float32, 3.0, 3.0)
    with torch.no_grad():
        plain = divergence(x, head, labels, expected, teacher, 0.5, 8)
    assert torch.equal(plain, divergence(x, head, labels, expected, teacher, 0.5, 8).detach())


def test_no_tokens_have_no_loss():
    x, head, labels, expected, teacher = given(torch.float32, None, None, num_tokens=1)
    loss = divergence(x, head, torch.full_like(labels, -100), expected, teacher, 0.5, 8)
    assert loss.item() == 0.0
    loss.backward()
    assert not x.grad.any()
    assert divergence(x[:0], head, labels[:0], expected[:0], teacher, 0.5, 8).item() == 0.0
