"""The draw of a token from all logits: the definition that faster forms are compared with."""

import torch
from torch import Tensor

from griffinlm.executor import DRAWN_TEMPERATURES

BLOCK_TOKENS = 256
NOT_FINITE = -1


def draw_tokens(logits: Tensor, temperatures: Tensor, numbers: Tensor, kept: Tensor | None = None) -> Tensor:
    """The token of every row: the best at temperature 0, else the one that the row's number draws; int64 [B].

    The probability of a token is e^(logit / temperature) over the sum of all that may be drawn; the draw takes the
    first one at which their running sum passes the number.

    Args:
        logits: float32 [B, V].
        temperatures: float64 [B], held to `DRAWN_TEMPERATURES`. numbers: float64 [B] in [0, 1).
        kept: bool [B, V], tokens that may be drawn; all if not given.

    Returns:
        `NOT_FINITE` where the best logit is not finite; the lowest id among equal best logits.
    """
    best, tokens = logits.max(dim=1)
    divisors = temperatures.clamp(*DRAWN_TEMPERATURES).float()
    weights = torch.exp((logits - best[:, None]) / divisors[:, None])
    drawn = draw(weights if kept is None else torch.where(kept, weights, 0.0), numbers)
    return torch.where(best.isfinite(), torch.where(temperatures > 0.0, drawn, tokens), NOT_FINITE)


def draw(weights: Tensor, numbers: Tensor) -> Tensor:
    """In each row the first index at which the running sum of weights passes a share, in [0, 1), of the whole sum.

    Sums are float32 inside blocks and float64 across them. What weighs nothing is never drawn.

    Args:
        weights: float32 [B, V], not all 0 in any row. numbers: float64 [B], the shares.
    """
    missing = -weights.shape[1] % BLOCK_TOKENS
    blocks = torch.nn.functional.pad(weights, (0, missing)).unflatten(1, (-1, BLOCK_TOKENS))
    reached = blocks.sum(dim=2).double().cumsum(dim=1)
    shares = numbers * reached[:, -1]
    block = _first_above(reached, shares)
    before = torch.where(block > 0, reached.gather(1, (block - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK_TOKENS))[:, 0].double().cumsum(dim=1)
    return block * BLOCK_TOKENS + _first_above(inside, shares - before)


def _first_above(reached: Tensor, numbers: Tensor) -> Tensor:
    """In each ascending row the first index above its number, at most the first that holds the last value."""
    is_above = (reached > numbers[:, None]) | (reached == reached[:, -1:])
    return is_above.to(torch.uint8).argmax(dim=1)
