"""The exits of a recursive model from held-out text: a small head behind every loop but the last, and thresholds."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from griffinlm.checkpoint.exits import Exits
from griffinlm.model import Griffin
from griffinlm.model.exits import recorded_exits
from griffinlm.recursive.exits import calibrated_thresholds
from griffinlm.train.errors import TrainError

LEAST_TOKENS = 1_000
MOST_ROW_TOKENS = 1_024
"""Of a document that are read."""
HIDDEN = 64
NUM_STEPS, BATCH_TOKENS, LEARNING_RATE, WEIGHT_DECAY, SEED = 800, 512, 3e-3, 0.03, 0
CALIBRATION_SHARE = 0.25
"""Of the tokens, read in documents of their own, from which the thresholds are found."""


def calibrate_exits(model: Griffin, documents: Iterable[Sequence[int]], quality: float, max_tokens: int) -> Exits:
    """Heads that fit most of the documents, and the thresholds of a quality on the others.

    A head learns by logistic loss whether the best next token behind its loop is that of full depth.

    Args:
        documents: token ids, each document from its beginning.
        quality: as in `calibrated_thresholds`. max_tokens: about how many are read of all documents.

    Raises:
        TrainError: the model has no loops, or there are too few tokens.
        RecursiveError: the quality is no share.
    """
    if model.config.recursion is None or model.config.recursion.num_loops == 1:
        raise TrainError("the model has no loops", hint="griffin recursive makes a model that has")
    learned, kept = _recorded(model, documents, max_tokens)
    num_tokens = sum(len(is_right) for _, is_right in learned + kept)
    if num_tokens < LEAST_TOKENS or not kept:
        raise TrainError(f"the text has {num_tokens} tokens; exits need {LEAST_TOKENS:,} in two documents or more")
    normed, is_right = map(torch.cat, zip(*learned, strict=True))
    heads = [fit_head(normed[:, loop], is_right[:, loop]) for loop in range(normed.shape[1])]
    parts = dict(zip(("inner", "inner_bias", "weights", "bias"), map(_stacked, zip(*heads, strict=True)), strict=True))
    exits = Exits(**parts, thresholds=(), quality=quality, shares=(), num_tokens=num_tokens)
    others, others_right = (torch.cat(one).numpy() for one in zip(*kept, strict=True))
    confidence = exits.confidence(others)
    thresholds = calibrated_thresholds(confidence, others_right, quality)
    shares = (confidence >= thresholds).mean(axis=0).tolist()
    return Exits(**parts, thresholds=tuple(thresholds), quality=quality, shares=tuple(shares), num_tokens=num_tokens)


def fit_head(inputs: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The head of least mean -log p(is_right), by AdamW; the same numbers for the same inputs.

    Inputs are brought to mean zero and variance one before, and the head back after.

    Args:
        inputs: float32 [N, D]. is_right: [N] bool.

    Returns:
        inner [h, D], inner_bias [h], weights [h] and bias [], as in `Exits`.
    """
    mean, scale = inputs.mean(dim=0), inputs.std(dim=0).clamp(min=1e-6)
    wanted = is_right.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        head = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, NUM_STEPS)
        for _ in range(NUM_STEPS):
            chosen = torch.randint(len(inputs), (BATCH_TOKENS,))
            score = head((inputs[chosen] - mean) / scale)[:, 0]
            nn.functional.binary_cross_entropy_with_logits(score, wanted[chosen]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    first, last = head[0], head[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    inner = first.weight.detach() / scale
    return inner, first.bias.detach() - inner @ mean, last.weight.detach()[0], last.bias.detach()[0]


def _recorded(
    model: Griffin, documents: Iterable[Sequence[int]], max_tokens: int
) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """What is behind the loops of documents, and whether it is right: of those to learn from, and of the others."""
    learned, kept, num_learned, num_kept = [], [], 0, 0
    for document in documents:
        row = torch.as_tensor(document[:MOST_ROW_TOKENS], device=model.embedding.weight.device)[None]
        found = recorded_exits(model, row)
        part = found.normed.float().cpu().clone(), found.is_right.cpu().clone()
        if num_kept < CALIBRATION_SHARE * (num_kept + num_learned):
            kept.append(part)
            num_kept += row.shape[1]
        else:
            learned.append(part)
            num_learned += row.shape[1]
        if num_learned + num_kept >= max_tokens:
            break
    return learned, kept


def _stacked(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.stack(list(parts)).numpy()
