"""What pretraining minimises: the cross-entropy of the next token."""

from typing import Self

import torch
from torch import Tensor, nn

from griffinlm.kernels.cross_entropy.chunked import cross_entropy
from griffinlm.model import Griffin
from griffinlm.model.griffin import BlockCall, GriffinState, read, recomputed


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
        expected = self.expected(tokens, positions)
        x = hidden(self.griffin, tokens, positions, self.block_call)
        loss = self.loss_of(x, labels.flatten(), expected)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}

    @property
    def block_call(self) -> BlockCall:
        """How a block is run."""
        return recomputed if self.griffin.gradient_checkpointing and torch.is_grad_enabled() else nn.Module.__call__

    def expected(self, tokens: Tensor, positions: Tensor | None) -> Tensor | None:
        """Beside the labels, what `loss_of` compares tokens with: [B T, D], or nothing."""
        return None

    def loss_of(self, x: Tensor, labels: Tensor, expected: Tensor | None) -> Tensor:
        """The loss summed over tokens, of their hidden states x [N, D] after the final norm and labels [N].

        Args:
            expected: of these tokens.
        """
        weight, cap = self.griffin.embedding.weight, self.griffin.config.logit_soft_cap
        return cross_entropy(x, weight, labels, cap, self.loss_chunk_tokens)


class ObjectiveAround(Objective):
    """An objective that takes another one's losses in a way of its own."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.griffin, objective.loss_chunk_tokens)
        # In a tuple, so that the model is not found twice.
        self._inner = (objective,)

    @property
    def inner(self) -> Objective:
        """The other one."""
        return self._inner[0]

    def train(self, mode: bool = True) -> Self:
        self.inner.train(mode)
        return super().train(mode)


def row_positions(tokens: Tensor, positions: Tensor | None) -> Tensor:
    """Positions of rows [B, T]; every row is one document where they are not given."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens) if positions is None else positions


def hidden(
    griffin: Griffin,
    tokens: Tensor,
    positions: Tensor | None,
    call: BlockCall,
    state: GriffinState | None = None,
) -> Tensor:
    """[B T, D] after the final norm, of rows [B, T] that go on from a state where one is given."""
    x = griffin.embedding(tokens) * griffin.config.embedding_scale
    reading = read(griffin.config, griffin.layers, x, state, positions, call)
    return griffin.final_norm(reading.in_order(reading.x)).flatten(0, 1)
