"""TRL's trainers with this package's optimizer, checkpoints and log."""

import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from griffinlm.train.checkpoints import Checkpoints, require_same_run
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.optimizer import build_optimizer
from griffinlm.train.schedule import share_of_largest
from griffinlm.train.sharding import num_started
from griffinlm.train.step_rows import StepRows
from griffinlm.train.trainer import (
    LOG_FILE,
    TENSORBOARD,
    Log,
    RunTrainer,
    TensorBoard,
    is_on_cpu,
    leave_standard_output,
)
from griffinlm.train.tuning_config import TunedRun, TuningConfig

CHECKPOINTS = "checkpoints"
"""In a run's output directory."""


def tuning_arguments(config: TuningConfig) -> SFTConfig:
    """The run as TRL's SFTConfig; conversations are rendered and cut into tokens before it sees them.

    Raises:
        TrainError: as `common_arguments`.
    """
    arguments = SFTConfig(
        **common_arguments(config),
        max_length=config.data.row_tokens,
        packing=config.is_packed,
    )
    _ = arguments.device  # joins the other processes
    return arguments


def common_arguments(config: TunedRun) -> dict[str, Any]:
    """What the arguments of all of TRL's trainers have in common.

    Raises:
        TrainError: the device is not there, or a step's rows do not divide over the processes.
    """
    use_cpu, num_processes = is_on_cpu(config.device), num_started()
    rows_at_once = config.rows_on_each(num_processes)
    saving = config.checkpoints
    return {
        "output_dir": str(config.output / CHECKPOINTS),
        "num_train_epochs": 1.0 if config.epochs is None else config.epochs,
        "max_steps": -1 if config.steps is None else config.steps,
        "per_device_train_batch_size": rows_at_once,
        # accelerate repeats rows so that all processes read as many batches, and leaves repeated ones out by their
        # number; in a batch of several rows they would count in its mean.
        "per_device_eval_batch_size": 1,
        "gradient_accumulation_steps": config.batch_rows // (rows_at_once * num_processes),
        "learning_rate": config.optimizer.learning_rate,
        "max_grad_norm": config.optimizer.clip_norm,
        "activation_checkpointing": config.gradient_checkpointing,
        "bf16": config.precision == "bfloat16",
        "use_cpu": use_cpu,
        "ddp_backend": "gloo" if use_cpu and num_processes > 1 else None,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": not use_cpu,
        "seed": config.seed,
        "logging_steps": config.log_every_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no" if saving is None else "steps",
        "save_steps": 500 if saving is None else saving.every_steps,
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
    }


class TunedTrainer(RunTrainer):
    """What all of TRL's trainers get here: this package's optimizer, schedule, checkpoints and log."""

    def __init__(
        self,
        config: TunedRun,
        model: Any,
        args: Any,
        train: Dataset,
        held_out: Dataset | None,
        tokenizer: Any,
        checkpoints: Checkpoints,
        facts: dict[str, Any],
        **of_its_own: Any,
    ) -> None:
        """Args: `facts` are JSON values that every checkpoint's manifest keeps, `of_its_own` TRL's for one trainer."""
        self._config, self._checkpoints, self._facts = config, checkpoints, facts
        config.output.mkdir(parents=True, exist_ok=True)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,  # pyright: ignore[reportArgumentType]
            eval_dataset=held_out,  # pyright: ignore[reportArgumentType]
            processing_class=tokenizer,
            callbacks=[Log(config.output / LOG_FILE), TensorBoard(config.output / TENSORBOARD)],
            **of_its_own,
        )
        leave_standard_output(self)
        if held_out is not None:
            self.add_callback(_EvaluateAtTheEnd())

    def last_checkpoint(self) -> Path | None:
        """Where the run goes on.

        Raises:
            TrainError: the checkpoint is damaged, or another run's.
        """
        last = self._checkpoints.last()
        if last is not None:
            require_same_run(last, self._facts["run"])
        return last

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return StepRows(len(rows), self._config.batch_rows, self._config.seed, self._current_pass)

    def _current_pass(self) -> int:
        return int(self.state.epoch or 0)

    @property
    def _trained(self) -> nn.Module:
        assert self.model is not None
        return TrainedParameters(self.model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            assert self.model is not None
            named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
            self.optimizer = self._adamw = build_optimizer(named, self._config.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(
                optimizer or self.create_optimizer(),
                lambda step: share_of_largest(self._config.schedule, num_training_steps, num_training_steps, step),
            )
        return self.lr_scheduler


class TuningTrainer(TunedTrainer, SFTTrainer):
    """Instruction tuning."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss, which makes logits of learned tokens alone; TRL's makes those of all on a CPU."""
        inputs = {**inputs, "skip_logits": True}
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *options: Any, **named: Any) -> tuple[Any, Any, Any]:
        """The loss of a row, weighted so that the mean over rows is that over learned tokens."""
        loss, logits, labels = super().prediction_step(model, inputs, *options, **named)
        return loss * _num_learned(inputs["labels"]) / self._mean_learned, logits, labels

    @cached_property
    def _mean_learned(self) -> float:
        """Learned tokens of a held-out row, in the mean."""
        assert isinstance(self.eval_dataset, Dataset)
        return sum(_num_learned(torch.tensor(row)) for row in self.eval_dataset["labels"]) / len(self.eval_dataset)


def _num_learned(labels: torch.Tensor) -> int:
    return int((labels != IGNORED).sum())


class _EvaluateAtTheEnd(TrainerCallback):
    """Before the last checkpoint, which then has the figures."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_evaluate = state.global_step >= state.max_steps


class TrainedParameters(nn.Module):
    """The parameters of a model that are trained, each once, so that a checkpoint holds no frozen ones.

    They have their names there, with / for the dots that no parameter of a module's own may have.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)
