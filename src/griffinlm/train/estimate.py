"""What a run will take before anyone pays for it: memory, time and money, from the model's own counts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from griffinlm.checkpoint import read_config_file
from griffinlm.config import ModelConfig
from griffinlm.cost import (
    ONE_LOSS,
    Losses,
    Operations,
    TrainingMemory,
    reading_operations,
    training_memory,
    training_operations,
)
from griffinlm.presets import PRESETS
from griffinlm.train.config import model_config, read_pretrain_config
from griffinlm.train.errors import TrainError
from griffinlm.train.exits_config import ExitsConfig, num_exits, require_exits

DEFAULT_ROW_TOKENS = 2048
DEFAULT_ROWS = 8
DEFAULT_UTILISATION = 0.4


class Device(NamedTuple):
    """What its maker says of an accelerator."""

    bfloat16_flops: float
    """Dense matrix products a second, in operations."""
    memory_bytes: float


DEVICES: dict[str, Device] = {
    "a100": Device(312e12, 80e9),
    "h100": Device(989e12, 80e9),
    "h200": Device(989e12, 141e9),
    "b200": Device(2250e12, 180e9),
    "l40s": Device(362e12, 48e9),
    "mi300x": Device(1307e12, 192e9),
    "rtx4090": Device(165e12, 24e9),
}


@dataclass(frozen=True)
class Plan:
    """A run to be estimated."""

    model: ModelConfig
    row_tokens: int = DEFAULT_ROW_TOKENS
    rows: int = DEFAULT_ROWS
    """Rows that a device reads at once."""
    tokens: int | None = None
    """Tokens that the whole run reads; None gives no time."""
    precision: str = "bfloat16"
    loss_chunk_tokens: int = 2048
    losses: Losses = ONE_LOSS


@dataclass(frozen=True)
class Estimate:
    """What a plan takes on some devices."""

    operations: Operations
    """Of reading one row."""
    kept: TrainingMemory
    recomputed: TrainingMemory
    """With gradient checkpointing."""
    kept_seconds: float | None
    recomputed_seconds: float | None


def read_plan(name: str, num_devices: int = 1) -> Plan:
    """The plan of a preset, a run's TOML file, or a model directory.

    A run that does not say how many rows a device reads at once divides a step's rows among the devices.

    Raises:
        GriffinError: it is none of these, the file describes no run, or its rows do not divide over the devices.
    """
    if name in PRESETS:
        return Plan(PRESETS[name])
    path = Path(name)
    if path.is_dir():
        return Plan(read_config_file(path / "config.json").config)
    if not path.exists():
        raise TrainError(
            f"there is no preset or file {name!r}",
            hint=f"give a configuration of griffin train pretrain, a model directory, or one of {', '.join(PRESETS)}",
        )
    run = read_pretrain_config(path)
    directory = run.model.get("directory")
    model = model_config(run.model) if directory is None else read_config_file(Path(directory) / "config.json").config
    teacher = None if run.teacher is None else read_config_file(run.teacher / "config.json").config
    return Plan(
        model,
        run.data.row_tokens,
        run.rows_on_each(num_devices),
        run.num_steps * run.step_tokens,
        run.precision,
        run.loss_chunk_tokens,
        losses_of(run.exits, model, teacher),
    )


def losses_of(exits: ExitsConfig | None, model: ModelConfig, teacher: ModelConfig | None) -> Losses:
    """The losses of a run: at full depth, behind its exits, and what they learn from a teacher.

    Raises:
        TrainError: the exits do not fit the model.
    """
    if exits is None:
        return Losses(teacher=teacher, num_taught=int(teacher is not None))
    require_exits(exits, model)
    number, learns_from_full_depth = num_exits(exits, model), exits.loss == "aggressive"
    return Losses(
        num_exits=number,
        num_asked=number * (learns_from_full_depth + exits.skips),
        teacher=teacher,
        num_taught=0 if teacher is None else 1 if learns_from_full_depth else 1 + number,
    )


def estimate(plan: Plan, device: str, num_devices: int, utilisation: float = DEFAULT_UTILISATION) -> Estimate:
    """Memory of a device, and seconds = operations of all tokens / (devices * operations a second * utilisation).

    Raises:
        TrainError: the device is unknown, or utilisation is no share.
    """
    if device not in DEVICES:
        raise TrainError(f"device is {device!r}; known are {', '.join(DEVICES)}")
    if not 0.0 < utilisation <= 1.0:
        raise TrainError(f"utilisation is {utilisation}; it must be above 0, and 1 at most")
    speed = DEVICES[device].bfloat16_flops * num_devices * utilisation

    def memory(recompute: bool) -> TrainingMemory:
        return training_memory(
            plan.model,
            plan.rows,
            plan.row_tokens,
            plan.precision,
            num_devices,
            recompute,
            plan.loss_chunk_tokens,
            plan.losses,
        )

    def seconds(recompute: bool) -> float | None:
        if plan.tokens is None:
            return None
        operations = training_operations(plan.model, plan.row_tokens, recompute, plan.losses)
        return plan.tokens / plan.row_tokens * operations / speed

    operations = reading_operations(plan.model, plan.row_tokens)
    return Estimate(operations, memory(False), memory(True), seconds(False), seconds(True))


def parse_count(text: str) -> int:
    """A number of tokens such as 300000, 15M, 1.5B or 2T.

    Raises:
        TrainError: it is no such number.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMBT]?)", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise TrainError(f"tokens is {text[:40]!r}; it must be a number above 0 such as 300000, 15M, 1.5B or 2T")
    factor = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[match[2].upper()]
    return max(round(float(match[1]) * factor), 1)
