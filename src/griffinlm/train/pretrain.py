"""Pretraining: from a configuration to a model directory."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.new_directory import require_free
from griffinlm.config import ModelConfig
from griffinlm.evaluate.documents import DocumentError
from griffinlm.loading import load
from griffinlm.model import Griffin
from griffinlm.quantization import recipe_of
from griffinlm.text import Tokenizer
from griffinlm.train.checkpoints import Checkpoints, require_same_run
from griffinlm.train.config import PretrainConfig, model_config
from griffinlm.train.data.mixture import Mixture, TrainingRows
from griffinlm.train.data.pack import PackOptions, identity, pack
from griffinlm.train.data.token_file import RECORD_FILE, Packed, open_packed
from griffinlm.train.distillation import Distillation
from griffinlm.train.errors import TrainError
from griffinlm.train.exits import ExitObjective, FollowStep
from griffinlm.train.exits_config import require_exits
from griffinlm.train.held_out import HeldOut
from griffinlm.train.matmul_precision import matmul_precision
from griffinlm.train.objective import Objective
from griffinlm.train.prefix import PREFIX_FILE, PrefixObjective, build_prefix, write_prefix
from griffinlm.train.quantization_aware import leave_on_grid, put_on_grid
from griffinlm.train.sharding import barrier, build_objective, num_started, rank, whole_tensors, world_size
from griffinlm.train.trainer import PretrainTrainer, training_arguments

MODEL, CHECKPOINTS, TOKENS = "model", "checkpoints", "tokens"
"""Folders of a run's output."""


class Start(NamedTuple):
    """The model that a run begins with."""

    config: ModelConfig
    tensors: Iterator[tuple[str, np.ndarray]]
    name: str
    """What the weights are: equal names are equal weights."""


class Outcome(NamedTuple):
    """What a run has come to."""

    model: Path
    step: int
    figures: dict[str, float]
    """The last value of everything that was logged."""


def pretrain(config: PretrainConfig, report: Callable[[DocumentError], None] | None = None) -> Outcome:
    """Trains a model, from the last complete checkpoint of the output directory where there is one.

    Under torchrun every process calls it; parameters are sharded over them. The output directory gets `tokens/` (the
    packed sources), `checkpoints/`, `log.jsonl`, `tensorboard/`, and at the end `model/`, with a prefix its state too.

    Args:
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: data, tokenizer, model or checkpoints cannot be used or written, the output was made by another
            run, or the loss is no number any more.
    """
    require_free(config.output / MODEL)
    arguments = training_arguments(config, num_started())
    device = arguments.device  # joins the other processes
    tokenizer = Tokenizer.from_directory(config.tokenizer)
    start = _start(config)
    if tokenizer.vocab_size > start.config.vocab_size:
        raise TrainError(
            f"the tokenizer has {tokenizer.vocab_size} tokens; the model's vocabulary has {start.config.vocab_size}"
        )
    packed = {name: _packed(config, name, tokenizer, report) for name in config.sources}
    rows = _training_rows(config, packed)
    facts = {"run": _facts(config, start, tokenizer, packed)}
    checkpoints = Checkpoints(config.output / CHECKPOINTS, config.checkpoints.num_kept)
    last = checkpoints.last()
    if last is not None and rank() == 0:
        require_same_run(last, facts["run"])
    barrier()
    objective = build_objective(start.config, start.tensors, config.loss_chunk_tokens, device, config.precision)
    objective.griffin.gradient_checkpointing = config.gradient_checkpointing
    if config.teacher is not None:
        teacher = _teacher(config, start.config, device)
        objective = Distillation(objective.griffin, teacher, config.loss_chunk_tokens, config.teacher_share)
    if config.exits is not None:
        objective = ExitObjective(objective, config.exits, config.num_steps)
    if config.quantization_aware is not None:
        put_on_grid(objective.griffin, start.config, recipe_of(config.quantization_aware))
    if config.prefix_tokens is not None:
        objective = _with_prefix(config, objective, rows)
    held_out = {name: _held_out(config, source) for name, source in packed.items() if source.held_out.num_documents}
    trainer = PretrainTrainer(config, arguments, objective, rows, held_out, checkpoints, facts)
    if isinstance(objective, ExitObjective):
        trainer.add_callback(FollowStep(objective))
    with matmul_precision(config.matmul_precision):
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    figures = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    leave_on_grid(objective.griffin)
    _write_model(config, start.config, whole_tensors(objective.griffin))
    if isinstance(objective, PrefixObjective):
        served = load(config.output / MODEL, engine="torch")
        write_prefix(served, objective.prefix, config.output / PREFIX_FILE)
    return Outcome(config.output / MODEL, trainer.state.global_step, figures)


def _start(config: PretrainConfig) -> Start:
    if "directory" in config.model:
        checkpoint = open_checkpoint(config.model["directory"])
        return Start(_with_exits(config, checkpoint.config), checkpoint.tensors(), checkpoint.digest())
    described = _with_exits(config, model_config(config.model))
    return Start(described, initial_tensors(described, config.seed), f"seed {config.seed}")


def _with_exits(config: PretrainConfig, model: ModelConfig) -> ModelConfig:
    """The model that comes of a run: of one that trains skips, one that skips."""
    if config.exits is None:
        return model
    if world_size() > 1:
        raise TrainError(f"exits are given with {world_size()} processes; one process trains them")
    require_exits(config.exits, model)
    if model.recursion is None or not config.exits.skips:
        return model
    return dataclasses.replace(model, recursion=dataclasses.replace(model.recursion, skips=True))


def _teacher(config: PretrainConfig, model: ModelConfig, device: torch.device) -> Griffin:
    assert config.teacher is not None
    if world_size() > 1:
        raise TrainError(f"teacher is given with {world_size()} processes; one process learns from a teacher")
    checkpoint = open_checkpoint(config.teacher)
    if checkpoint.config.vocab_size != model.vocab_size:
        raise TrainError(
            f"teacher {config.teacher} has {checkpoint.config.vocab_size} tokens; the model has {model.vocab_size}"
        )
    return build_objective(
        checkpoint.config, checkpoint.tensors(), config.loss_chunk_tokens, device, config.precision
    ).griffin


def _with_prefix(config: PretrainConfig, objective: Objective, rows: TrainingRows) -> PrefixObjective:
    """The prefix begins with the first tokens that the run reads."""
    if world_size() > 1:
        raise TrainError(f"prefix_tokens is given with {world_size()} processes; one process trains a prefix")
    assert config.prefix_tokens is not None
    num_rows = -(-config.prefix_tokens // config.data.row_tokens)
    tokens = np.concatenate([rows[index]["tokens"] for index in range(num_rows)])[: config.prefix_tokens]
    return PrefixObjective(objective, build_prefix(objective.griffin, tokens.tolist(), config.data.row_tokens))


def _packed(
    config: PretrainConfig, name: str, tokenizer: Tokenizer, report: Callable[[DocumentError], None] | None
) -> Packed:
    """A source's token files, made by the first process where they are not there."""
    source, data = config.sources[name], config.data
    directory = source.packed or config.output / TOKENS / name
    options = PackOptions(source.field, data.held_out_share, data.bad_rows, data.largest_row_bytes)
    if rank() == 0 and not source.packed and not (directory / RECORD_FILE).exists():
        pack(source.files, config.tokenizer, directory, options, data.processes, report)
    barrier()
    packed = open_packed(directory, tokenizer.vocab_size)
    expected = {"tokenizer": tokenizer.digest} if source.packed else identity(source.files, tokenizer, options)
    wrong = [field for field, value in expected.items() if packed.record.get(field) != value]
    if wrong:
        raise TrainError(
            f"{directory} was packed with another {' and other '.join(wrong)} than source {name} has",
            hint="remove it, or pack the source anew",
        )
    if not packed.train.num_rows(data.row_tokens):
        raise TrainError(
            f"source {name} has {packed.train.num_tokens} tokens to train on; a row needs {data.row_tokens + 1}"
        )
    return packed


def _training_rows(config: PretrainConfig, packed: Mapping[str, Packed]) -> TrainingRows:
    files = {name: source.train for name, source in packed.items()}
    return TrainingRows(
        [
            (Mixture(files, stage.mixture, config.data.row_tokens, config.seed, index), stage.steps * config.batch_rows)
            for index, stage in enumerate(config.stages)
        ]
    )


def _held_out(config: PretrainConfig, source: Packed) -> HeldOut:
    return HeldOut(*source.held_out.held_out_rows(config.data.row_tokens, config.evaluation.max_tokens))


def _facts(config: PretrainConfig, start: Start, tokenizer: Tokenizer, packed: Mapping[str, Packed]) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON values; how it is cut over devices does not."""
    values = dataclasses.asdict(config)
    deciding = ("batch_rows", "stages", "optimizer", "schedule", "precision", "quantization_aware", "seed")
    is_rounded = config.matmul_precision != "highest"
    return {
        "model": start.config.to_dict(),
        "weights": start.name,
        "tokenizer": tokenizer.digest,
        "teacher": None if config.teacher is None else open_checkpoint(config.teacher).digest(),
        "teacher_share": None if config.teacher is None else config.teacher_share,
        "prefix_tokens": config.prefix_tokens,
        "exits": None if config.exits is None else {**values["exits"], "layers": list(config.exits.layers)},
        "sources": {name: source.record for name, source in packed.items()},
        "row_tokens": config.data.row_tokens,
        "matmul_precision": config.matmul_precision if is_rounded else None,
        **{name: list(values[name]) if name == "stages" else values[name] for name in deciding},
    }


def _write_model(config: PretrainConfig, model: ModelConfig, tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    if rank() == 0:
        write_checkpoint(model, tensors, config.output / MODEL, "griffinlm", None, config.tokenizer)
    elif world_size() > 1:
        for _ in tensors:
            pass
    barrier()
