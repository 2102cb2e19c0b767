"""What pretraining minimises: the cross-entropy of the next token."""

import torch
from torch import Tensor, nn

from griffinlm.kernels.cross_entropy.chunked import cross_entropy
from griffinlm.model import Griffin
from griffinlm.model.griffin import read, recomputed


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
        self, tokens: Tensor, positions: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """The loss of rows [B, T] over `num_items_in_batch` labels; the sum over labels if that is None.

        Without positions every row is one document.
        """
        griffin = self.griffin
        call = recomputed if griffin.gradient_checkpointing and torch.is_grad_enabled() else nn.Module.__call__
        x = griffin.embedding(tokens) * griffin.config.embedding_scale
        reading = read(griffin.config, griffin.layers, x, None, positions, call)
        x = griffin.final_norm(reading.in_order(reading.x))
        weight, cap = griffin.embedding.weight, griffin.config.logit_soft_cap
        loss = cross_entropy(x.flatten(0, 1), weight, labels.flatten(), cap, self.loss_chunk_tokens)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}
