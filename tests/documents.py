"""Rows of several documents as one call meets them, for tests that list by hand what every token may see."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """A row of one call: documents one after another, the first perhaps begun in an earlier call."""

    num_before: int
    """Tokens of the first document that were read before the call."""
    lengths: tuple[int, ...]
    """Tokens that the call holds of each document."""

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    def documents(self) -> list[tuple[int, int, int]]:
        """Of each document with tokens in the call: tokens read before, first index in the call, tokens in the call."""
        firsts = [sum(self.lengths[:i]) for i in range(len(self.lengths))]
        befores = [self.num_before] + [0] * (len(self.lengths) - 1)
        return [d for d in zip(befores, firsts, self.lengths, strict=True) if d[2]]

    def positions(self, num_tokens: int) -> list[int]:
        """Place of each token in its document, padded at the end to `num_tokens`."""
        places = [before + i for before, _, length in self.documents() for i in range(length)]
        return places + [-1] * (num_tokens - len(places))


def rows(longest: int = 7, most_before: int = 12) -> st.SearchStrategy[list[Row]]:
    """One to three rows; documents of one to three tokens are common, an empty row happens."""
    length = st.one_of(st.integers(1, 3), st.integers(1, longest))
    row = st.builds(
        lambda before, continued, others: Row(before, (continued, *others)),
        st.one_of(st.just(0), st.integers(0, most_before)),
        st.one_of(st.just(0), length),
        st.lists(length, max_size=3),
    )
    return st.lists(row, min_size=1, max_size=3).filter(lambda drawn: any(row.num_tokens for row in drawn))


def call_positions(drawn: list[Row]) -> tuple[Tensor, Tensor]:
    """positions [B, T] and lengths [B] of a call with these rows."""
    num_tokens = max(row.num_tokens for row in drawn)
    return (
        torch.tensor([row.positions(num_tokens) for row in drawn]),
        torch.tensor([row.num_tokens for row in drawn]),
    )
