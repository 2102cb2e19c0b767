"""Learning the probabilities of a teacher instead of the next token, or beside it."""

import torch
from torch import Tensor, nn

from griffinlm.kernels.divergence.chunked import divergence
from griffinlm.kernels.divergence.reference import Head
from griffinlm.model import Griffin
from griffinlm.train.objective import Objective, hidden


class Distillation(Objective):
    """An objective whose loss in training is s KL(teacher || model) + (1 - s) that of the data, which evaluation has.

    A teacher's probabilities say more than one token does. Of a model that is its own teacher only what was done to it
    has a gradient, such as an integer grid, and not the noise of the data.
    """

    def __init__(self, griffin: Griffin, teacher: Griffin, loss_chunk_tokens: int, share: float = 1.0) -> None:
        """Args: `share` is s."""
        super().__init__(griffin, loss_chunk_tokens)
        self._share = share
        # In a tuple, so that the teacher is no part of what is trained and saved.
        self._teacher = (teacher.eval().requires_grad_(False),)

    def expected(self, tokens: Tensor, positions: Tensor | None) -> Tensor | None:
        """The teacher's [B T, D] after its final norm; none in evaluation."""
        if not self.training:
            return None
        (teacher,) = self._teacher
        with torch.no_grad():
            return hidden(teacher, tokens, positions, nn.Module.__call__)

    def loss_of(self, x: Tensor, labels: Tensor, expected: Tensor | None) -> Tensor:
        """s sum KL(teacher || model) - (1 - s) sum log q[label] over the tokens with a label, in nats."""
        if expected is None:
            return super().loss_of(x, labels, None)
        (teacher,) = self._teacher
        heads = head_of(self.griffin), head_of(teacher)
        return divergence(x, heads[0], labels, expected, heads[1], self._share, self.loss_chunk_tokens)


def head_of(griffin: Griffin) -> Head:
    """What gives a model's probabilities."""
    # Read once for all chunks: under fake quantization every reading rounds the matrix anew.
    return Head(griffin.embedding.weight, griffin.config.logit_soft_cap)
