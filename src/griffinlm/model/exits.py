"""By what a token may leave the loops of a recursive model early."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from griffinlm.executor import ExecutorError
from griffinlm.model.blocks import BlockState, Layout
from griffinlm.model.griffin import Griffin, read


class ConfidenceRule:
    """A token may leave where the head gives its best next token at least the loop's threshold as probability.

    The head is read behind every loop, so the rule costs what its share in a loop's weights is.

    Args:
        thresholds: one for every loop but the last; above 1 nothing leaves.

    Raises:
        ExecutorError: there are more or less of them.
    """

    def __init__(self, model: Griffin, thresholds: Sequence[float]) -> None:
        num_loops = 1 if model.config.recursion is None else model.config.recursion.num_loops
        if len(thresholds) != num_loops - 1:
            raise ExecutorError(f"there are {len(thresholds)} thresholds; {num_loops} loops take {num_loops - 1}")
        self._model = model
        self._thresholds = torch.tensor([*thresholds, float("inf")], device=model.embedding.weight.device)

    def __call__(self, x: Tensor, depth: Tensor) -> Tensor:
        """Whether tokens [B] may leave, of their numbers x [B, D] behind as many loops as `depth` [B] says."""
        best, _ = _best(self._model.logits(x[:, None])[:, 0])
        return best >= self._thresholds[depth - 1]


@torch.inference_mode()
def recorded_confidence(model: Griffin, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """How sure the head is behind every loop but the last, and whether it is right.

    Args:
        tokens: [B, T], each row a document from its beginning.

    Returns:
        the probability of the best next token, and whether that is the best one at full depth, [B T, loops - 1] both.
    """
    config = model.config
    ends = [layer for layer in range(config.num_looped_layers) if (layer + 1) % config.num_shared_layers == 0]
    exits = {id(model.layers[layer]) for layer in ends[:-1]}
    behind: list[Tensor] = []

    def call(block: nn.Module, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, BlockState]:
        x, after = block(x, layout, state)
        if id(block) in exits:
            behind.append(x)
        return x, after

    x = read(config, model.layers, model.embedding(tokens) * config.embedding_scale, None, None, call).x
    _, final = _best(model.logits(x))
    found = [_best(model.logits(one)) for one in behind]
    confidence = torch.stack([best for best, _ in found], dim=-1)
    return confidence.flatten(0, 1), torch.stack([token == final for _, token in found], dim=-1).flatten(0, 1)


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability and its token."""
    best, token = torch.softmax(logits, dim=-1).max(dim=-1)
    return best, token
