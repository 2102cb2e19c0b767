"""Cross-entropy of the next token, from hidden states: the definition that faster forms are compared with."""

import torch
from torch import Tensor


def cross_entropy(x: Tensor, embedding: Tensor, labels: Tensor, soft_cap: float | None) -> Tensor:
    """sum of -log softmax(cap(x @ embedding^T))[label] over the tokens whose label is not negative, in nats.

    cap(z) = soft_cap tanh(z / soft_cap); None is no cap. Logits are float32 from the product on (float64 if x is).

    Args:
        x: [N, D], after the final norm. embedding: [V, D]. labels: int64 [N].

    Returns:
        A float32 number (float64 if x is).
    """
    logits = torch.nn.functional.linear(x, embedding)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if soft_cap is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return torch.nn.functional.cross_entropy(logits, labels.clamp(min=-1), ignore_index=-1, reduction="sum")
