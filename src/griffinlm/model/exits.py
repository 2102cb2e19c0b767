"""By what a token may leave the loops of a recursive model early."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from griffinlm.checkpoint.exits import Exits
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
        _require_loops(model, len(thresholds), "thresholds")
        self._model = model
        self._thresholds = torch.tensor([*thresholds, float("inf")], device=model.embedding.weight.device)

    def __call__(self, x: Tensor, depth: Tensor) -> Tensor:
        """Whether tokens [B] may leave, of their hidden states x [B, D] behind as many loops as `depth` [B] says."""
        best, _ = _best(self._model.logits(x[:, None])[:, 0])
        return best >= self._thresholds[depth - 1]


class ProbeRule:
    """A token may leave where the small head behind the loop is at least as confident as the loop's threshold.

    It costs h (D + 1) products, h the width of the small head's hidden layer, instead of the whole vocabulary.

    Raises:
        ExecutorError: the heads are of a model with other loops.
    """

    def __init__(self, model: Griffin, exits: Exits) -> None:
        _require_loops(model, len(exits.thresholds), "exits")
        device = model.embedding.weight.device
        self._norm = model.final_norm
        parts = (exits.inner, exits.inner_bias, exits.weights, exits.bias)
        self._inner, self._inner_bias, self._weights, self._bias = (torch.from_numpy(p).to(device) for p in parts)
        self._thresholds = torch.tensor([*exits.thresholds, torch.inf], device=device)

    def __call__(self, x: Tensor, depth: Tensor) -> Tensor:
        """Whether tokens [B] may leave, of their hidden states x [B, D] behind as many loops as `depth` [B] says."""
        # All heads read all tokens: one product of a few rows, and no copy of a head for each token.
        hidden = torch.einsum("bd,lhd->blh", self._norm(x).float(), self._inner) + self._inner_bias
        score = (torch.relu(hidden) * self._weights).sum(dim=-1) + self._bias
        confidence = nn.functional.pad(torch.sigmoid(score), (0, 1))
        place = depth[:, None] - 1
        return confidence.gather(1, place)[:, 0] >= self._thresholds[depth - 1]


class RecordedExits(NamedTuple):
    """What tokens are like behind every loop but the last, where none leaves."""

    normed: Tensor
    """[B T, loops - 1, D], after the final norm."""
    confidence: Tensor
    """[B T, loops - 1], the probability of the best next token."""
    is_right: Tensor
    """[B T, loops - 1], whether that is the best one at full depth."""


@torch.inference_mode()
def recorded_exits(model: Griffin, tokens: Tensor) -> RecordedExits:
    """What the head says behind every loop of tokens [B, T], each row a document from its beginning."""
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
    return RecordedExits(
        torch.stack([model.final_norm(one) for one in behind], dim=-2).flatten(0, 1),
        torch.stack([best for best, _ in found], dim=-1).flatten(0, 1),
        torch.stack([token == final for _, token in found], dim=-1).flatten(0, 1),
    )


def recorded_confidence(model: Griffin, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """`confidence` and `is_right` of `recorded_exits`."""
    _, confidence, is_right = recorded_exits(model, tokens)
    return confidence, is_right


@torch.no_grad()
def best_probability(model: Griffin, x: Tensor, chunk_tokens: int) -> Tensor:
    """The probability of the best next token, [B, T], by the head of hidden states x [B, T, D]; no gradient.

    Logits exist for `chunk_tokens` tokens at a time.
    """
    parts = []
    for part in x.flatten(0, 1).split(chunk_tokens):
        logits = model.logits(part)
        parts.append(1.0 / logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_().sum(dim=-1))
    return torch.cat(parts).view(x.shape[:2])


def _require_loops(model: Griffin, number: int, name: str) -> None:
    num_loops = model.config.num_loops
    if number != num_loops - 1:
        raise ExecutorError(f"there are {number} {name}; {num_loops} loops take {num_loops - 1}")


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability and its token."""
    best, token = torch.softmax(logits, dim=-1).max(dim=-1)
    return best, token
