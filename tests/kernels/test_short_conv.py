"""The short convolution, both forms = a loop over the tokens of each document on its own."""

import pytest
import torch
from documents import Row, call_positions, rows
from hypothesis import given
from hypothesis import strategies as st
from kernel_forms import BLOCKS, with_blocks
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels.short_conv import blocked, reference

forms = pytest.mark.parametrize("form", [reference, blocked], ids=["reference", "blocked"])
blocks = st.sampled_from([6, *BLOCKS])
seeds = st.integers(0, 2**31)
num_taps = st.integers(2, 5)
dtypes = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


def convolve_document(document: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One document [n, L] from its first token on: out[t] = bias + sum of weight[K-1-s] document[t-s]."""
    out = []
    for t in range(len(document)):
        total = bias.clone()
        for s in range(min(t, len(weight) - 1) + 1):
            total += weight[len(weight) - 1 - s] * document[t - s]
        out.append(total)
    return torch.stack(out)


class Call:
    """A call with random inputs; every row had `history` inputs before it, an older document's among them."""

    def __init__(self, drawn: list[Row], num_taps: int, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.positions, self.lengths = call_positions(drawn)
        self.past = num_taps - 1
        self.weight, self.bias = normal(num_taps, 3), normal(3)
        self.x = normal(*self.positions.shape, 3)
        self.history = [normal(self.past + row.num_before, 3) for row in drawn]
        self.tail = torch.stack([history[len(history) - self.past :] for history in self.history])


@forms
@given(rows(), num_taps, dtypes, seeds, blocks)
def test_equals_every_document_on_its_own(form, drawn, num_taps, dtype, seed, num_numbers):
    call = Call(drawn, num_taps, dtype, seed)
    with with_blocks(num_numbers):
        out, tail = form.short_conv(call.x, call.weight, call.bias, call.positions, call.tail, call.lengths)
    weight, bias = call.weight.double(), call.bias.double()
    for index, row in enumerate(drawn):
        for before, first, length in row.documents():
            here = call.x[index, first : first + length]
            document = torch.cat([call.history[index][call.past :][:before], here]).double()
            expected = convolve_document(document, weight, bias)[before:]
            assert_agree(out[index, first : first + length], expected, "short_conv", dtype, "reference")
        read = torch.cat([call.history[index], call.x[index, : row.num_tokens]])
        assert torch.equal(tail[index], read[len(read) - call.past :])
    assert out.dtype == tail.dtype == dtype


@forms
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), num_taps, seeds)
def test_no_tail_equals_a_tail_of_another_document(form, lengths, num_taps, seed):
    call = Call([Row(0, tuple(lengths))], num_taps, torch.float64, seed)
    out, tail = form.short_conv(call.x, call.weight, call.bias, call.positions, call.tail)
    fresh_out, fresh_tail = form.short_conv(call.x, call.weight, call.bias, call.positions, None)
    assert_agree(fresh_out, out, "short_conv", torch.float64, "reference")
    kept = min(call.past, call.x.shape[1])
    assert torch.equal(fresh_tail[:, call.past - kept :], tail[:, call.past - kept :])
    assert not fresh_tail[:, : call.past - kept].any()


@forms
@given(rows(), num_taps, seeds, blocks)
def test_gradients_equal_those_of_the_loop(form, drawn, num_taps, seed, num_numbers):
    call = Call(drawn, num_taps, torch.float64, seed)
    leaves = [tensor.requires_grad_() for tensor in (call.x, call.weight, call.bias, call.tail)]
    with with_blocks(num_numbers):
        out, tail = form.short_conv(call.x, call.weight, call.bias, call.positions, call.tail, call.lengths)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, expected_loss = tail.sum(), torch.zeros((), dtype=torch.float64)
    for index, row in enumerate(drawn):
        for before, first, length in row.documents():
            known = call.tail[index][call.past - min(before, call.past) :]
            here = slice(first, first + length)
            convolved = convolve_document(torch.cat([known, call.x[index, here]]), call.weight, call.bias)
            loss = loss + (out[index, here] * weights[index, here]).sum()
            expected_loss = expected_loss + (convolved[len(known) :] * weights[index, here]).sum()
        read = torch.cat([call.tail[index], call.x[index, : row.num_tokens]])
        expected_loss = expected_loss + read[len(read) - call.past :].sum()
    expected = torch.autograd.grad(expected_loss, leaves)
    with with_blocks(num_numbers):
        gradients = torch.autograd.grad(loss, leaves)
    for found, wanted in zip(gradients, expected, strict=True):
        assert_agree(found, wanted, "short_conv", torch.float64, "reference")


def test_gradients_stand_on_the_device_of_the_inputs():
    x, weight, bias = (torch.zeros(s, device="meta", requires_grad=True) for s in ((2, 5, 3), (4, 3), (3,)))
    positions = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    out, _ = blocked.short_conv(x, weight, bias, positions, None)
    gradients = torch.autograd.grad(out.sum(), (x, weight, bias))
    assert [g.shape for g in (out, *gradients)] == [x.shape, x.shape, weight.shape, bias.shape]
    assert all(g.device.type == "meta" for g in (out, *gradients))
