"""Log-probabilities of a prompt's own tokens, taken while it is read."""

from collections.abc import Sequence

import numpy as np

from griffinlm.generation.sampling import TokenLogProbability, token_log_probability

LOGITS_AT_MOST = 1 << 24
"""Held at once (64 MiB of float32), whatever the vocabulary."""


class PromptScores:
    """log p of every token of a document but the first, after those before it.

    Args:
        num_alternatives: how many of the best tokens to report beside each.
        found: of the document's tokens from the second on, those known already.
    """

    def __init__(self, num_alternatives: int, vocab_size: int, found: Sequence[TokenLogProbability] = ()) -> None:
        self.token_ids: Sequence[int] = ()
        """The document; set before any of it is read."""
        self._num_alternatives = num_alternatives
        self.max_chunk_tokens = max(1, LOGITS_AT_MOST // vocab_size)
        self.found = list(found)

    def score(self, first: int, logits: np.ndarray) -> None:
        """Takes the logits [1, tokens, vocab] after the tokens from place `first` on."""
        for row, target in zip(logits[0], self.token_ids[first + 1 :], strict=False):
            self.found.append(token_log_probability(row, target, self._num_alternatives))
