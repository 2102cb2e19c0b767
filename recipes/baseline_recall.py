"""Training a baseline on a recall task of the Griffin paper, section 6.2, and its accuracy at other lengths."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from baseline_models import Size, baseline
from torch.nn.functional import cross_entropy

import griffinlm
from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import ModelConfig
from griffinlm.evaluate.recall import evaluate_recall, training_rows
from griffinlm.model import Griffin
from griffinlm.model.state import to_array
from griffinlm.train.config import OptimizerConfig
from griffinlm.train.optimizer import build_optimizer

WARM_UP_STEPS = 50
CURVE_STEPS = 50
"""Steps over which a point of a learning curve is averaged."""
SOLVED = 0.99
"""Share of right answers' tokens in CURVE_STEPS steps at which training ends."""


@dataclass(frozen=True)
class RecallScale:
    """How much is trained and measured."""

    size: Size
    tasks: dict[str, int]
    """Tokens of the prompts that each task is trained with; Griffin's window is half of that."""
    lengths: tuple[int, ...]
    """Tokens of the prompts that are measured."""
    batch_rows: int
    most_steps: int
    learning_rate: float
    examples: int


def train_on_recall(kind: str, task: str, seed: int, work: Path, scale: RecallScale) -> dict[str, Any]:
    """Trains a baseline on examples of one length until it has learned the task, or for `most_steps`.

    Returns:
        `parameters`; `steps` taken; the `curve`: steps and the share of the answers' tokens in the 50 before that were
        right, all of rows never seen before; and `accuracy` by length: of whole answers.
    """
    length = scale.tasks[task]
    config = baseline(kind, replace(scale.size, window_tokens=length // 2))
    model, curve = _trained(config, task, seed, scale)
    directory = work / "runs" / f"{task}-{kind}-{seed}"
    if not directory.exists():
        tensors = ((name, to_array(parameter)) for name, parameter in model.named_parameters())
        write_checkpoint(config, tensors, directory, "griffinlm")
    loaded = griffinlm.load(directory, threads=torch.get_num_threads())
    figures = evaluate_recall(loaded, [task], scale.lengths, scale.examples)
    return {
        "parameters": config.num_parameters,
        "steps": curve[-1][0],
        "curve": curve,
        "accuracy": [[figure.length, round(figure.accuracy, 4)] for figure in figures],
    }


def _trained(config: ModelConfig, task: str, seed: int, scale: RecallScale) -> tuple[Griffin, list[list[float]]]:
    """A model trained by AdamW on the tokens of the answers alone, and its learning curve."""
    model = Griffin(config)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in initial_tensors(config, seed)})
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(scale.learning_rate, weight_decay=0.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP_STEPS))
    curve, shares = [], []
    for step in range(scale.most_steps):
        rows = training_rows(
            task, config.vocab_size, scale.tasks[task], scale.batch_rows, seed * scale.most_steps + step
        )
        tokens, is_answer = torch.from_numpy(rows.tokens), torch.from_numpy(rows.is_answer)[:, 1:]
        logits, _ = model(tokens[:, :-1])
        predicted, wanted = logits[is_answer], tokens[:, 1:][is_answer]
        cross_entropy(predicted, wanted).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        shares.append((predicted.argmax(dim=-1) == wanted).float().mean().item())
        if len(shares) == CURVE_STEPS or step + 1 == scale.most_steps:
            curve.append([step + 1, round(sum(shares) / len(shares), 4)])
            shares = []
            if curve[-1][1] >= SOLVED:
                break
    return model, curve
