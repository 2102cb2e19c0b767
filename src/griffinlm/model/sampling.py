"""Tokens drawn where the logits are: what `generation.candidates` computes, on tensors of fixed shapes.

The tokens that top-k, top-p and min-p keep are a beginning of the logits sorted from best to worst, equals by their id,
so three cuts are three counts.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from griffinlm.executor import DRAWN_TEMPERATURES, Draw
from griffinlm.kernels.token_draw import operator, reference


class Draws(NamedTuple):
    """How the tokens of B rows are drawn; tensors, so that a CUDA graph reads new values from the same places."""

    temperatures: Tensor
    """[B] float64; 0 takes the best token."""
    top_k: Tensor
    """[B] int64; at least the vocabulary where nothing is cut."""
    top_p: Tensor
    """[B] float64; 1 cuts nothing."""
    log_min_p: Tensor
    """[B] float64; -inf cuts nothing."""
    numbers: Tensor
    """[B] float64 in [0, 1)."""


def to_draws(draws: Sequence[Draw], vocab_size: int) -> Draws:
    """The rows' draws as tensors on the CPU."""
    most = torch.tensor([min(vocab_size if one.top_k is None else one.top_k, vocab_size) for one in draws])

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Draws(
        column([one.temperature for one in draws]),
        most,
        column([1.0 if one.top_p is None else one.top_p for one in draws]),
        column([math.log(one.min_p) if one.min_p else -math.inf for one in draws]),
        column([one.number for one in draws]),
    )


def cuts(draw: Draw) -> bool:
    """Whether a draw looks at some tokens only, which takes sorting."""
    return draw.top_k is not None or (draw.top_p is not None and draw.top_p < 1.0) or bool(draw.min_p)


def draw_tokens(logits: Tensor, draws: Draws, has_cuts: bool) -> Tensor:
    """The token of every row: the best at temperature 0, else the one that the row's number draws; int64 [B].

    As in `generation.candidates` it is exact but for numbers within `TOTAL_TOLERANCE` of a step between tokens.

    Args:
        logits: float32 [B, V].
        has_cuts: whether top-k, top-p and min-p are looked at.

    Returns:
        `reference.NOT_FINITE` where the best logit is not finite.
    """
    if not has_cuts:
        return operator.draw_tokens(logits, draws.temperatures, draws.numbers)
    kept = _kept(logits, draws.temperatures.clamp(*DRAWN_TEMPERATURES), draws)
    return reference.draw_tokens(logits, draws.temperatures, draws.numbers, kept)


def _kept(logits: Tensor, temperatures: Tensor, draws: Draws) -> Tensor:
    """Which tokens [B, V] are left by top-k, of these by top-p, and of these by min-p."""
    ordered, ids = logits.sort(dim=1, descending=True, stable=True)
    last = ordered.gather(1, draws.top_k.clamp(max=logits.shape[1])[:, None] - 1)
    best = ordered[:, :1].double()
    is_left = ordered >= last
    weights = torch.exp((ordered.double() - best) / temperatures[:, None]) * is_left
    reached = weights.cumsum(dim=1)
    # A token is needed as long as those before it fall short of the share.
    short = reached - weights < draws.top_p[:, None] * reached[:, -1:]
    is_left &= short | (draws.top_p[:, None] >= 1.0)
    is_left &= ordered.double() >= best + (temperatures * draws.log_min_p)[:, None]
    return torch.empty_like(is_left).scatter(1, ids, is_left)
