"""Rules by which tokens leave the loops of a recursive model early."""

import torch
from torch import Tensor

from griffinlm.executor import ExecutorError
from griffinlm.model.griffin import Griffin


class ConfidenceRule:
    """A token may leave where the head gives its best next token at least a probability of `threshold`.

    The head is read behind every loop, so the rule costs what its share in a loop's weights is.

    Raises:
        ExecutorError: the threshold is below 0, or no number.
    """

    def __init__(self, model: Griffin, threshold: float) -> None:
        if not threshold >= 0:
            raise ExecutorError(f"threshold is {threshold}; it must be 0 or above, and above 1 nothing leaves")
        self._model, self._threshold = model, threshold

    def __call__(self, x: Tensor, depth: Tensor) -> Tensor:
        """Whether tokens [B] may leave, of their numbers x [B, D] behind a loop."""
        return torch.softmax(self._model.logits(x[:, None])[:, 0], dim=-1).amax(dim=-1) >= self._threshold
