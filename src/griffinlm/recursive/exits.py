"""Where tokens may leave the loops early, from what was recorded on held-out text."""

import math

import numpy as np

from griffinlm.recursive.settings import RecursiveError


def calibrated_thresholds(confidence: np.ndarray, is_right: np.ndarray, quality: float) -> list[float]:
    """For every loop but the last the lowest confidence from which on tokens may leave there.

    Of the tokens that are at least so sure behind a loop, a share of `quality` or more is right; infinite where no
    confidence reaches that.

    Args:
        confidence: [tokens, loops - 1]. is_right: [tokens, loops - 1] bool, whether the best next token behind the loop
            is that of full depth.

    Raises:
        RecursiveError: the quality is no share.
    """
    if not 0 <= quality <= 1:
        raise RecursiveError(f"quality is {quality}; it must be in 0..1")
    thresholds = []
    for sure, right in zip(confidence.T, is_right.T, strict=True):
        order = np.argsort(-sure, kind="stable")
        ascending, share = sure[order], np.cumsum(right[order]) / np.arange(1, len(sure) + 1)
        # Tokens of equal confidence leave together, so only the last of them says what their share is.
        is_last = np.append(ascending[1:] != ascending[:-1], True)
        reached = ascending[is_last & (share >= quality)]
        thresholds.append(float(reached.min()) if reached.size else math.inf)
    return thresholds
