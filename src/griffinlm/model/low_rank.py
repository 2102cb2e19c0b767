"""Low-rank terms of linear layers, chosen for every row of a call. No layer remembers which rows have which."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class LowRankTerm(NamedTuple):
    """up (down x), added to the product of one layer."""

    down: Tensor
    """[r, K]; of a block-diagonal layer [h, r, b]."""
    up: Tensor
    """[N, r]; of a block-diagonal layer [h, b, r]."""

    def __call__(self, x: Tensor) -> Tensor:
        """up (down x) of x [..., K], in the type of the term."""
        if self.down.dim() == 2:
            return nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        blocks = x.unflatten(-1, (self.down.shape[0], -1))
        inner = torch.einsum("...hi,hri->...hr", blocks, self.down)
        return torch.einsum("...hr,hjr->...hj", inner, self.up).flatten(-2)


class RowTerms(NamedTuple):
    """The rows of one call that have the same terms."""

    rows: Tensor
    """[n], their numbers."""
    terms: Mapping[nn.Module, LowRankTerm]
    """By the layer to whose product each is added."""


def product(layer: nn.Module, x: Tensor, low_rank: Sequence[RowTerms] = ()) -> Tensor:
    """layer(x) for x [B, ...], plus up (down x) in rows whose terms have one for this layer.

    A term and the sum with it are computed in the term's type, whatever that of x. Other rows keep their bits.
    """
    return add_terms(layer(x), layer, x, low_rank)


def add_terms(y: Tensor, layer: nn.Module, x: Tensor, low_rank: Sequence[RowTerms]) -> Tensor:
    """The layer's product y [B, ...] of x [B, ...] with the terms that some rows add to it, written into y."""
    for rows, terms in low_rank:
        term = terms.get(layer)
        if term is not None:
            dtype = torch.promote_types(x.dtype, term.down.dtype)
            y[rows] = (y[rows].to(dtype) + term(x[rows].to(dtype))).to(y.dtype)
    return y
