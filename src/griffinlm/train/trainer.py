"""The Trainer of a run: what transformers' own leaves to others is said here, and nothing else."""

import contextlib
import json
import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (made on import)
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from griffinlm.checkpoint.errors import describe
from griffinlm.train.checkpoints import Checkpoints
from griffinlm.train.config import PretrainConfig
from griffinlm.train.data.mixture import TrainingRows
from griffinlm.train.errors import TrainError
from griffinlm.train.held_out import HeldOut, bits_per_byte
from griffinlm.train.objective import Objective
from griffinlm.train.optimizer import build_optimizer
from griffinlm.train.schedule import learning_rate_factor

LOG_FILE, TENSORBOARD = "log.jsonl", "tensorboard"
"""In a run's output directory."""
EVENT_VERSION = "brain.Event:2"
"""What the first event of a file says of its form."""


def training_arguments(config: PretrainConfig, num_processes: int) -> TrainingArguments:
    """The run as transformers' TrainingArguments; they find the device and join the processes of torchrun.

    Raises:
        TrainError: the device is not there, or a step's rows do not divide over the processes.
    """
    rows_per_device = config.rows_on_each(num_processes)
    use_cpu = is_on_cpu(config.device)
    return TrainingArguments(
        output_dir=str(config.output),
        max_steps=config.num_steps,
        per_device_train_batch_size=rows_per_device,
        gradient_accumulation_steps=config.batch_rows // (rows_per_device * num_processes),
        average_tokens_across_devices=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        max_grad_norm=config.optimizer.clip_norm,
        # Sharded parameters are gathered in bfloat16; autocast would keep a copy of all of them beside.
        bf16=config.precision == "bfloat16" and num_processes == 1,
        use_cpu=use_cpu,
        ddp_backend="gloo" if use_cpu and num_processes > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not use_cpu,
        seed=config.seed,
        full_determinism=config.deterministic,
        logging_steps=config.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
    )


def is_on_cpu(device: str) -> bool:
    """Whether a run on a device of that name, or `auto`, computes on the CPU.

    Raises:
        TrainError: the device is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainError("device is cuda; torch finds none here")
    return device == "cpu" or not torch.cuda.is_available()


class RunTrainer(Trainer):
    """transformers' Trainer with checkpoints of our own, which ends where its numbers are none any more."""

    _checkpoints: Checkpoints
    _facts: dict[str, Any]
    """JSON values that every checkpoint's manifest keeps."""
    _adamw: torch.optim.Optimizer
    _norm: Any = 0.0

    @property
    def _trained(self) -> nn.Module:
        """The module whose parameters a checkpoint holds."""
        assert self.model is not None
        return self.model

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self._require_finite("loss", logs.get("loss", 0.0))
        self._require_finite("norm of the gradient", logs.get("grad_norm", 0.0))
        super().log(logs, start_time)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._require_finite("loss", self._tr_loss.item())
        # A finite loss can have a gradient that has just made the weights NaN.
        self._require_finite("norm of the gradient", float(self._norm))
        self._checkpoints.save(self.state.global_step, self._trained, self._adamw, self._facts, self._write_rest)

    def _write_rest(self, directory: Path) -> None:
        self._save_rng_state(str(directory))
        if self.is_world_process_zero():
            self.state.save_to_json(str(directory / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights come with the optimizer's state, once that exists."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self._checkpoints.load(Path(checkpoint), self._trained, self._adamw)
            assert isinstance(self.lr_scheduler, LambdaLR)
            self.lr_scheduler.last_epoch = self.state.global_step

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        self._norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return self._norm

    def _require_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainError(
                f"the {name} is {value} at step {self.state.global_step}",
                hint="lower optimizer.learning_rate, or raise schedule.warm_up_steps",
            )


class PretrainTrainer(RunTrainer):
    """Rows in a fixed order, and bits per byte.

    Parameters are sharded before they come here, so that one code runs on CPUs and GPUs; the Trainer sees a model that
    owns its placement.
    """

    def __init__(
        self,
        config: PretrainConfig,
        args: TrainingArguments,
        objective: Objective,
        rows: TrainingRows,
        held_out: Mapping[str, HeldOut],
        checkpoints: Checkpoints,
        facts: dict[str, Any],
    ) -> None:
        """Args: `facts` are JSON values that every checkpoint's manifest keeps."""
        optimizer = build_optimizer(objective.named_parameters(), config.optimizer)
        scheduler = LambdaLR(optimizer, lambda step: learning_rate_factor(config, step))
        super().__init__(
            objective,
            args,
            train_dataset=rows,  # pyright: ignore[reportArgumentType]  (a sequence is all that is asked for)
            optimizers=(optimizer, scheduler),
            callbacks=[_Rhythm(config), Log(config.output / LOG_FILE), TensorBoard(config.output / TENSORBOARD)],
        )
        leave_standard_output(self)
        self._objective, self._adamw = objective, optimizer
        self._config, self._held_out, self._checkpoints, self._facts = config, held_out, checkpoints, facts

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Bits per byte of every source's held-out rows."""
        rows_at_once = self.args.per_device_train_batch_size
        metrics = {
            f"eval_{name}_bits_per_byte": bits_per_byte(self._objective, held_out, rows_at_once, self.args.device)
            for name, held_out in self._held_out.items()
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "tokens": self.state.global_step * self._config.step_tokens}, start_time)

    @contextlib.contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Gradients of all but a step's last rows are added up without talking to the other processes."""
        assert isinstance(self._objective, FSDPModule)
        self._objective.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._objective.set_requires_gradient_sync(True)


class _Rhythm(TrainerCallback):
    """When to evaluate and to save: every so many steps, and at the end."""

    def __init__(self, config: PretrainConfig) -> None:
        self._save_every, self._evaluate_every = config.checkpoints.every_steps, config.evaluation.every_steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, is_last = state.global_step, state.global_step >= state.max_steps
        control.should_save = is_last or step % self._save_every == 0
        control.should_evaluate = is_last or bool(self._evaluate_every and step % self._evaluate_every == 0)
        control.should_log = control.should_log or is_last


def leave_standard_output(trainer: Trainer) -> None:
    """Sends the log lines of a Trainer to standard error, with its progress bar; where there is no bar, nowhere."""
    trainer.remove_callback(PrinterCallback)
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(_Progress())


class _Progress(ProgressCallback):
    def on_log(self, *args: Any, **kwargs: Any) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            super().on_log(*args, **kwargs)


class Log(TrainerCallback):
    """Every log entry as a line of JSON; a run that goes on keeps those up to its checkpoint."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with _as_train_error(self._path):
                lines = "".join(f"{json.dumps(entry)}\n" for entry in state.log_history)
                self._path.write_text(lines, encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with _as_train_error(self._path), open(self._path, "a", encoding="utf-8") as file:
                print(json.dumps(state.log_history[-1]), file=file)


class TensorBoard(TrainerCallback):
    """The same figures for TensorBoard, in a folder.

    TensorBoard's own writer is a thread, which would print where it fails and let the run go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            entry = state.log_history[-1]
            values = [
                Summary.Value(tag=_tag(name), simple_value=value) for name, value in entry.items() if name != "step"
            ]
            with _as_train_error(self._folder):
                if self._file is None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
                    self._file = open(self._folder / name, "wb")  # noqa: SIM115  (it stays open for the run)
                    self._write(Event(wall_time=time.time(), file_version=EVENT_VERSION))
                self._write(Event(wall_time=time.time(), step=state.global_step, summary=Summary(value=values)))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: Event) -> None:
        writer = RecordWriter(self._file)
        writer.write(event.SerializeToString())
        writer.flush()


def _tag(name: str) -> str:
    """Training and evaluation as groups, as transformers has them."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


@contextlib.contextmanager
def _as_train_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainError(f"cannot write {path}: {describe(error)}") from error
