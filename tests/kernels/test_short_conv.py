"""The short convolution = a loop over the tokens of each document on its own."""

import torch
from documents import Row, call_positions, rows
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree
from torch import Tensor

from griffinlm.kernels.short_conv.reference import short_conv

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


@given(rows(), num_taps, dtypes, seeds)
def test_equals_every_document_on_its_own(drawn, num_taps, dtype, seed):
    call = Call(drawn, num_taps, dtype, seed)
    out, tail = short_conv(call.x, call.weight, call.bias, call.positions, call.tail, call.lengths)
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


@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), num_taps, seeds)
def test_no_tail_equals_a_tail_of_another_document(lengths, num_taps, seed):
    call = Call([Row(0, tuple(lengths))], num_taps, torch.float64, seed)
    out, tail = short_conv(call.x, call.weight, call.bias, call.positions, call.tail)
    fresh_out, fresh_tail = short_conv(call.x, call.weight, call.bias, call.positions, None)
    assert_agree(fresh_out, out, "short_conv", torch.float64, "reference")
    kept = min(call.past, call.x.shape[1])
    assert torch.equal(fresh_tail[:, call.past - kept :], tail[:, call.past - kept :])
    assert not fresh_tail[:, : call.past - kept].any()


@given(rows(), num_taps, seeds)
def test_gradients_equal_those_of_the_loop(drawn, num_taps, seed):
    call = Call(drawn, num_taps, torch.float64, seed)
    leaves = [tensor.requires_grad_() for tensor in (call.x, call.weight, call.bias, call.tail)]
    out, tail = short_conv(call.x, call.weight, call.bias, call.positions, call.tail, call.lengths)
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
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert_agree(found, wanted, "short_conv", torch.float64, "reference")
