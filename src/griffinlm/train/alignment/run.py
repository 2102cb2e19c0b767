"""From a trainer to its result: what runs on preferences and rewards share."""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.new_directory import require_free
from griffinlm.evaluate.documents import DocumentError
from griffinlm.train.alignment.config import AlignmentConfig, Config
from griffinlm.train.alignment.rows import Parse, Row, Split, read_split
from griffinlm.train.base import Base, TuningOutcome, as_train_error, open_base, write_model
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
    "rules",
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


def write_policy(base: Base, model: Any, result: Path) -> None:
    """Writes trained weights as a model directory beside which the base's tokenizer stands."""
    write_model(base.checkpoint, model, result)


def run_to_end(
    config: Config,
    parse: Parse[Row],
    most_tokens: int,
    build_trainer: Callable[[Config, Base, Split[Row]], TunedTrainer],
    write: Callable[[Base, Any, Path], object],
    report: Callable[[DocumentError], None] | None,
) -> TuningOutcome:
    """Reads model and rows, trains, from the last checkpoint where there is one, and writes the result.

    Args:
        parse, most_tokens, report: as in `read_split`.
        write: given the base, the trained model and the directory of the result; called in the first process alone.

    Raises:
        GriffinError: data, tokenizer or models cannot be used, the output is taken, was made by another run or cannot
            be written, the last checkpoint is damaged, or the loss is no number any more.
    """
    result = config.output / MODEL
    require_free(result)
    base = open_base(config.model)
    rows = read_split(config, base.tokenizer, parse, most_tokens, report)
    with as_train_error(config.output):
        return _train(build_trainer(config, base, rows), rows, result, lambda model: write(base, model, result))


def _train(trainer: TunedTrainer, rows: Split[Any], result: Path, write: Callable[[Any], object]) -> TuningOutcome:
    last = trainer.last_checkpoint()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    if trainer.is_world_process_zero():
        write(trainer.model)
    trainer.accelerator.wait_for_everyone()
    figures = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    counts = {"num_rows": len(rows.train), "num_held_out": len(rows.held_out), "num_left_out": rows.num_left_out}
    return TuningOutcome(result, trainer.state.global_step, {**figures, **counts})
