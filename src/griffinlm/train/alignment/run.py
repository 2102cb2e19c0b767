"""From a trainer to its result: what runs on preferences and rewards share."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from griffinlm.train.alignment.config import AlignmentConfig
from griffinlm.train.alignment.rows import Split
from griffinlm.train.base import Base, TuningOutcome
from griffinlm.train.checkpoints import Checkpoints
from griffinlm.train.tuning_trainer import CHECKPOINTS, TunedTrainer

MODEL = "model"
"""In a run's output directory."""
NOT_DECIDING = {
    "output",
    "model",
    "sources",
    "checkpoints",
    "rows_per_device",
    "device",
    "gradient_checkpointing",
    "log_every_steps",
    "reward",
    "watched",
}
"""Entries of a configuration that do not decide the numbers of a run, or are told by a digest."""


def facts_of(config: AlignmentConfig, base: Base, rows: Iterable[Any], **others: Any) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON values; how it is cut over devices does not.

    Args:
        rows: that are learned from.
        others: further facts of the run.
    """
    said = hashlib.sha256()
    for row in rows:
        said.update(f"{json.dumps(row)}\n".encode())
    values = {name: value for name, value in asdict(config).items() if name not in NOT_DECIDING}
    values["data"] = {"row_tokens": config.data.row_tokens}
    digests = {"weights": base.checkpoint.digest(), "tokenizer": base.tokenizer.digest, "rows": said.hexdigest()}
    return {**digests, **values, **others}


def checkpoints_of(config: AlignmentConfig) -> Checkpoints:
    """The directory of a run's checkpoints."""
    saving = config.checkpoints
    return Checkpoints(config.output / CHECKPOINTS, 1 if saving is None else saving.num_kept)


def run_to_end(trainer: TunedTrainer, rows: Split[Any], result: Path, write: Callable[[Any], None]) -> TuningOutcome:
    """Trains, from the last checkpoint where there is one, and writes the result.

    Args:
        write: given the trained model; called in the first process alone.

    Raises:
        GriffinError: the last checkpoint is damaged or another run's, a file cannot be written, or the loss is no
            number any more.
    """
    last = trainer.last_checkpoint()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.is_world_process_zero():
        write(trainer.model)
    trainer.accelerator.wait_for_everyone()
    figures = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    counts = {"num_rows": len(rows.train), "num_held_out": len(rows.held_out), "num_left_out": rows.num_left_out}
    return TuningOutcome(result, trainer.state.global_step, {**figures, **counts})
