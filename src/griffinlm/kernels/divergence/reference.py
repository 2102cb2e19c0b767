"""Learning from a teacher, from hidden states: the definition that faster forms are compared with."""

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """What turns hidden states into probabilities: softmax(cap(x @ embedding^T))."""

    embedding: Tensor
    """[V, D]."""
    soft_cap: float | None
    """c of cap(z) = c tanh(z / c); None is no cap."""

    def log_probabilities(self, x: Tensor) -> Tensor:
        """[N, V] of x [N, D], float32 (float64 if x is)."""
        logits = torch.nn.functional.linear(x, self.embedding)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return torch.log_softmax(logits, dim=-1)


def divergence(x: Tensor, head: Head, labels: Tensor, expected: Tensor, teacher: Head, share: float) -> Tensor:
    """sum of s KL(p || q) - (1 - s) log q[label] over the tokens whose label is not negative, in nats.

    KL(p || q) = sum over the vocabulary of p (log p - log q). p has no gradient.

    Args:
        x, expected: [N, D] and [N, D'], after the final norms of the model and its teacher; of q and p.
        labels: int64 [N].
        share: s.

    Returns:
        A float32 number (float64 if x is).
    """
    is_counted = labels >= 0
    log_q = head.log_probabilities(x[is_counted])
    with torch.no_grad():
        log_p = teacher.log_probabilities(expected[is_counted])
    learned = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return share * learned + (1.0 - share) * torch.nn.functional.nll_loss(log_q, labels[is_counted], reduction="sum")
