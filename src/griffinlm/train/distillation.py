"""Learning the probabilities of a teacher instead of the next token."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from griffinlm.model import Griffin
from griffinlm.model.griffin import BlockCall, read, recomputed
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.objective import Objective


class Distillation(Objective):
    """An objective whose loss in training is the divergence from a teacher; in evaluation it is that of the data.

    A teacher's probabilities say more than one token does. Of a model that is its own teacher only what was done to it
    has a gradient, such as an integer grid, and not the noise of the data.
    """

    def __init__(self, griffin: Griffin, teacher: Griffin, loss_chunk_tokens: int) -> None:
        super().__init__(griffin, loss_chunk_tokens)
        # In a tuple, so that the teacher is no part of what is trained and saved.
        self._teacher = (teacher.eval().requires_grad_(False),)

    def forward(
        self, tokens: Tensor, positions: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """KL(teacher || model), in nats, summed over the tokens with a label, over `num_items_in_batch` if given."""
        if not self.training:
            return super().forward(tokens, positions, labels, num_items_in_batch)
        griffin, (teacher,) = self.griffin, self._teacher
        call = recomputed if griffin.gradient_checkpointing else nn.Module.__call__
        with torch.no_grad():
            expected = _hidden(teacher, tokens, positions, nn.Module.__call__)
        found = _hidden(griffin, tokens, positions, call)
        is_counted = (labels != IGNORED).flatten()
        expected, found = expected.flatten(0, 1)[is_counted], found.flatten(0, 1)[is_counted]
        loss = torch.zeros((), dtype=torch.float32, device=found.device)
        for start in range(0, len(found), self.loss_chunk_tokens):
            piece = slice(start, start + self.loss_chunk_tokens)
            weights = griffin.embedding.weight, teacher.embedding.weight
            caps = griffin.config.logit_soft_cap, teacher.config.logit_soft_cap
            part = checkpoint(divergence, found[piece], expected[piece], weights, caps, use_reentrant=False)
            assert isinstance(part, Tensor)
            loss = loss + part
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}


def divergence(
    x: Tensor, expected: Tensor, embeddings: tuple[Tensor, Tensor], soft_caps: tuple[float | None, float | None]
) -> Tensor:
    """sum of p (log p - log q), q of the model's hidden states `x` [n, D], p of the teacher's, `expected`.

    Args:
        embeddings, soft_caps: of the model, and of the teacher.
    """
    log_q, log_p = map(_log_probabilities, (x, expected), embeddings, soft_caps)
    return nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _log_probabilities(x: Tensor, embedding: Tensor, soft_cap: float | None) -> Tensor:
    logits = nn.functional.linear(x, embedding).float()
    if soft_cap is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return torch.log_softmax(logits, dim=-1)


def _hidden(griffin: Griffin, tokens: Tensor, positions: Tensor, call: BlockCall) -> Tensor:
    """[B, T, D] after the final norm."""
    x = griffin.embedding(tokens) * griffin.config.embedding_scale
    reading = read(griffin.config, griffin.layers, x, None, positions, call)
    return griffin.final_norm(reading.in_order(reading.x))
