"""What pretraining minimises: the cross-entropy of the next token."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from griffinlm.model import Griffin
from griffinlm.model.griffin import read, recomputed
from griffinlm.train.data.token_file import IGNORED


def next_token_loss(x: Tensor, embedding: Tensor, labels: Tensor, soft_cap: float | None, chunk_tokens: int) -> Tensor:
    """sum of -log softmax(cap(x @ embedding^T))[label] over the tokens whose label is not IGNORED, in nats.

    Logits are float32 and exist for `chunk_tokens` tokens at a time; the backward pass computes them again.

    Args:
        x: [B, T, D], after the final norm.
        embedding: [V, D].
        labels: int64 [B, T].

    Returns:
        A float32 number.
    """
    flat, wanted = x.flatten(0, 1), labels.flatten()
    total = torch.zeros((), dtype=torch.float32, device=x.device)
    for start in range(0, len(wanted), chunk_tokens):
        piece = slice(start, start + chunk_tokens)
        part = checkpoint(_loss_of_chunk, flat[piece], embedding, wanted[piece], soft_cap, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total


def _loss_of_chunk(x: Tensor, embedding: Tensor, labels: Tensor, soft_cap: float | None) -> Tensor:
    logits = nn.functional.linear(x, embedding).float()
    if soft_cap is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")


class Objective(nn.Module):
    """A model whose forward pass gives its loss, as a Trainer asks for it."""

    accepts_loss_kwargs = True
    """The Trainer passes how many labels a whole step has, so that accumulation and devices do not change the loss."""
    is_distributed_loading_by_transformers = False
    """Whether the parameters are sharded already, so that the Trainer leaves them as they are."""

    def __init__(self, griffin: Griffin, loss_chunk_tokens: int) -> None:
        super().__init__()
        self.griffin = griffin
        self.loss_chunk_tokens = loss_chunk_tokens

    def forward(
        self, tokens: Tensor, positions: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """The loss of rows [B, T] over `num_items_in_batch` labels; the sum over labels if that is None."""
        griffin = self.griffin
        call = recomputed if griffin.gradient_checkpointing and torch.is_grad_enabled() else nn.Module.__call__
        x = griffin.embedding(tokens) * griffin.config.embedding_scale
        reading = read(griffin.config, griffin.layers, x, None, positions, call)
        x = griffin.final_norm(reading.in_order(reading.x))
        loss = next_token_loss(
            x, griffin.embedding.weight, labels, griffin.config.logit_soft_cap, self.loss_chunk_tokens
        )
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}
