"""product(layer, x) = the layer with W + up down in the rows that have the term, and their gradients are equal too."""

import pytest
import torch
from tolerances import assert_agree
from torch import Tensor, nn

from griffinlm.model.layers import BlockDiagonalLinear
from griffinlm.model.low_rank import LowRankTerm, RowTerms, product

ROWS, TOKENS, RANK = 5, 3, 2


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear() -> tuple[nn.Module, list[LowRankTerm]]:
    layer = nn.Linear(6, 7)
    return layer, [LowRankTerm(normal(RANK, 6, seed=s), normal(7, RANK, seed=s + 1)) for s in (1, 3)]


def gate() -> tuple[nn.Module, list[LowRankTerm]]:
    layer = BlockDiagonalLinear(6, 3)
    layer.weight.data, layer.bias.data = normal(3, 2, 2, seed=7), normal(3, 2, seed=8)
    return layer, [LowRankTerm(normal(3, RANK, 2, seed=s), normal(3, 2, RANK, seed=s + 1)) for s in (1, 3)]


def weight_with(layer: nn.Module, term: LowRankTerm) -> Tensor:
    weight = layer.get_parameter("weight")
    if weight.dim() == 2:
        return weight + term.up @ term.down
    return weight + torch.einsum("hri,hjr->hij", term.down, term.up)


def by_rows(layer: nn.Module, x: Tensor, terms: list[LowRankTerm], of_row: list[int | None]) -> Tensor:
    rows = []
    for row, index in enumerate(of_row):
        changes = {} if index is None else {"weight": weight_with(layer, terms[index])}
        rows.append(torch.func.functional_call(layer, changes, (x[[row]],)))
    return torch.cat(rows)


@pytest.mark.parametrize("make", [linear, gate])
def test_rows_with_terms_equal_merged_weights_with_their_gradients(make):
    layer, terms = make()
    for term in terms:
        term.down.requires_grad_()
        term.up.requires_grad_()
    of_row = [1, None, 0, 1, None]
    segments = [RowTerms(torch.tensor([2]), {layer: terms[0]}), RowTerms(torch.tensor([3, 0]), {layer: terms[1]})]
    leaves = [part for term in terms for part in term] + list(layer.parameters())
    results = []
    for compute in (lambda x: product(layer, x, segments), lambda x: by_rows(layer, x, terms, of_row)):
        x = normal(ROWS, TOKENS, 6, seed=0).requires_grad_()
        y = compute(x)
        results.append([y, *torch.autograd.grad((y * normal(*y.shape, seed=9)).sum(), [x, *leaves])])
    for found, expected in zip(*results, strict=True):
        assert_agree(found, expected, "layer", "float32", "torch")


@pytest.mark.parametrize("make", [linear, gate])
def test_rows_and_layers_without_a_term_keep_their_bits(make):
    layer, terms = make()
    x = normal(ROWS, TOKENS, 6, seed=0)
    with torch.no_grad():
        plain = layer(x)
        found = product(layer, x, [RowTerms(torch.tensor([1, 4]), {layer: terms[0]})])
        other = product(layer, x, [RowTerms(torch.tensor([1, 4]), {nn.Identity(): terms[0]})])
    assert torch.equal(found[[0, 2, 3]], plain[[0, 2, 3]])
    assert not torch.allclose(found[[1, 4]], plain[[1, 4]])
    assert torch.equal(other, plain)


def test_term_of_a_bfloat16_layer_is_added_in_float32():
    layer, terms = linear()
    layer = layer.to(torch.bfloat16)
    x = normal(ROWS, TOKENS, 6, seed=0).to(torch.bfloat16)
    with torch.no_grad():
        found = product(layer, x, [RowTerms(torch.arange(ROWS), {layer: terms[0]})])
        expected = (layer(x).float() + x.float() @ terms[0].down.T @ terms[0].up.T).to(torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert_agree(found, expected, "layer", "float32", "torch")
