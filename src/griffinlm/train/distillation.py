"""Learning the probabilities of a teacher instead of the next token, or beside it."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from griffinlm.model import Griffin
from griffinlm.model.griffin import BlockCall, read, recomputed
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.objective import Objective


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

    def forward(
        self, tokens: Tensor, positions: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """The loss in nats, summed over the tokens with a label, over `num_items_in_batch` if given."""
        if not self.training:
            return super().forward(tokens, positions, labels, num_items_in_batch)
        griffin, (teacher,) = self.griffin, self._teacher
        call = recomputed if griffin.gradient_checkpointing else nn.Module.__call__
        with torch.no_grad():
            expected = _hidden(teacher, tokens, positions, nn.Module.__call__)
        found = _hidden(griffin, tokens, positions, call)
        is_counted = (labels != IGNORED).flatten()
        expected, found = expected.flatten(0, 1)[is_counted], found.flatten(0, 1)[is_counted]
        wanted = labels.flatten()[is_counted]
        # Read once: under fake quantization every reading rounds the matrix anew.
        weights = griffin.embedding.weight, teacher.embedding.weight
        caps = griffin.config.logit_soft_cap, teacher.config.logit_soft_cap
        loss = torch.zeros((), dtype=torch.float32, device=found.device)
        for start in range(0, len(found), self.loss_chunk_tokens):
            piece = slice(start, start + self.loss_chunk_tokens)
            given = found[piece], expected[piece], wanted[piece], weights, caps, self._share
            part = checkpoint(_loss_of_chunk, *given, use_reentrant=False)
            assert isinstance(part, Tensor)
            loss = loss + part
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}


def _loss_of_chunk(
    x: Tensor,
    expected: Tensor,
    labels: Tensor,
    embeddings: tuple[Tensor, Tensor],
    soft_caps: tuple[float | None, float | None],
    share: float,
) -> Tensor:
    """sum of s sum p (log p - log q) - (1 - s) log q[label], q of the hidden states `x` [n, D], p of `expected`.

    Args:
        expected: hidden states of the teacher.
        embeddings, soft_caps: of the model, and of the teacher.
        share: s.
    """
    log_q, log_p = map(_log_probabilities, (x, expected), embeddings, soft_caps)
    loss = share * nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return loss if share == 1.0 else loss + (1.0 - share) * nn.functional.nll_loss(log_q, labels, reduction="sum")


def _log_probabilities(x: Tensor, embedding: Tensor, soft_cap: float | None) -> Tensor:
    logits = nn.functional.linear(x, embedding).float()
    if soft_cap is not None:
        logits = torch.tanh(logits / soft_cap) * soft_cap
    return torch.log_softmax(logits, dim=-1)


def _hidden(griffin: Griffin, tokens: Tensor, positions: Tensor | None, call: BlockCall) -> Tensor:
    """[B, T, D] after the final norm."""
    x = griffin.embedding(tokens) * griffin.config.embedding_scale
    reading = read(griffin.config, griffin.layers, x, None, positions, call)
    return griffin.final_norm(reading.in_order(reading.x))
