"""TuningConfig: everything that decides an instruction tuning run, read from one TOML file."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from griffinlm.errors import shown
from griffinlm.quantization import RECIPES, QuantizationError, recipe_of
from griffinlm.quantization.formats import OFFERED_NAMES
from griffinlm.train.config import (
    CheckpointConfig,
    Count,
    OptimizerConfig,
    ScheduleConfig,
    require_schedule,
    rows_on_each,
)
from griffinlm.train.data.conversations import RowFields
from griffinlm.train.errors import TrainError
from griffinlm.train.table import Range, read_table, read_toml

FLOATS = ("float32", "bfloat16")
"""Weights that a state can be written for besides the integer formats; the torch engine runs them."""


@dataclass(frozen=True)
class ConversationsConfig(RowFields):
    """A set of conversations, one a row."""

    files: tuple[Path, ...] = ()
    """`.jsonl` (also .xz, .gz, .zst)."""
    max_rows: Count | None = None
    """Rows at the beginning that are taken; None is all."""


@dataclass(frozen=True)
class TuningDataConfig:
    """How conversations become rows of tokens."""

    row_tokens: Annotated[int, Range(2, 2**24)] = 1024
    """Most tokens of a row; a longer conversation is cut behind them."""
    packing: bool | None = None
    """Several conversations in a row, each from an empty state. None is so where all or low-rank weights are trained;
    a tuned prompt or state begins a row, so there every conversation has one of its own."""
    held_out_share: Annotated[float, Range(0.0, 0.5)] = 0.01
    """Share of the conversations that are kept out of training, chosen by a hash of what is said in them."""
    bad_rows: Literal["skip", "refuse"] = "refuse"
    """What is done with a row that is no conversation; either way it is told with file and line."""
    largest_row_bytes: Count = 8_000_000


@dataclass(frozen=True)
class TuningOptimizerConfig(OptimizerConfig):
    """AdamW, without decay unless it is asked for."""

    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.0


@dataclass(frozen=True)
class LoraTable:
    """Low-rank terms of every linear (arXiv 2106.09685)."""

    rank: Annotated[int, Range(1, 4096)] = 16
    alpha: Annotated[float, Range(1e-6, 1e6)] = 32.0
    dropout: Annotated[float, Range(0.0, 0.99)] = 0.0
    """Of what a linear's term is computed from; terms of gates have none."""
    gates: bool = False
    """Terms of the RG-LRU's gates too."""


@dataclass(frozen=True)
class PromptTable:
    """Virtual tokens in front of every conversation (arXiv 2104.08691)."""

    num_tokens: Annotated[int, Range(1, 4096)] = 16


@dataclass(frozen=True)
class StateTable:
    """The recurrent state that every conversation begins from."""

    weights: str | None = None
    """The weights that the model will be served with, as in `griffinlm.load`; the state is written for these."""


@dataclass(frozen=True, kw_only=True)
class TunedRun:
    """What every run that begins from a model says. Paths are relative to the folder of the file."""

    output: Path
    """Directory of everything that the run writes."""
    model: str
    """What is trained: a directory, or a name as in `griffinlm.load`; with a tokenizer and a chat template."""
    batch_rows: Count
    """Rows of an optimizer step, over all devices."""
    optimizer: TuningOptimizerConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    epochs: Annotated[float, Range(1e-6, 1e6)] | None = None
    """Passes over the data; 1 where neither these nor steps are given. Every step has `batch_rows` rows: one that a
    pass cannot fill goes on with rows of the next one."""
    steps: Count | None = None
    """Optimizer steps, instead of epochs."""
    checkpoints: CheckpointConfig | None = None
    """None writes nothing before the end."""
    rows_per_device: Count | None = None
    """Rows that a device reads at once; the rest of a step is accumulated. None is as many as a step has."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the activations, and of weights that are not trained; those that are, and the optimizer, are float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    """Recompute every block in the backward pass instead of keeping its activations."""
    log_every_steps: Count = 10
    seed: Annotated[int, Range(0, 2**31)] = 0

    def rows_on_each(self, num_devices: int) -> int:
        """Rows that each of some devices reads at once.

        Raises:
            TrainError: a step's rows do not divide over the devices.
        """
        return rows_on_each(self.batch_rows, self.rows_per_device, num_devices)


@dataclass(frozen=True, kw_only=True)
class TuningConfig(TunedRun):
    """An instruction tuning run. The output gets `model`, `adapter`, or `state.safetensors` at the end.

    With none of the tables `lora`, `prompt` and `state` all weights are trained.
    """

    sources: dict[str, ConversationsConfig]
    data: TuningDataConfig = field(default_factory=TuningDataConfig)
    lora: LoraTable | None = None
    prompt: PromptTable | None = None
    state: StateTable | None = None
    quantization_aware: str | None = None
    """Train under fake quantization: `int4`, `int8` or a format, as `griffin quantize` will store the weights."""

    @property
    def trains_weights(self) -> bool:
        """Whether all weights of the model are trained."""
        return self.lora is None and self.prompt is None and self.state is None

    @property
    def is_packed(self) -> bool:
        """Whether a row holds several conversations."""
        if self.data.packing is not None:
            return self.data.packing
        return self.prompt is None and self.state is None


def read_tuning_config(path: Path, changes: Sequence[str] = ()) -> TuningConfig:
    """The run that a TOML file describes, `changes` (`optimizer.learning_rate=1e-3`) made to it.

    Raises:
        TrainError: the file cannot be read, or an entry is unknown, missing, of the wrong type, out of range, or does
            not fit the others.
    """
    config = _checked(read_table(TuningConfig, read_toml(path, changes)))
    folder = path.parent
    sources = {
        name: replace(source, files=tuple(folder / file for file in source.files))
        for name, source in config.sources.items()
    }
    local = folder / config.model
    return replace(
        config, output=folder / config.output, sources=sources, model=str(local) if local.exists() else config.model
    )


def require_run(config: TunedRun) -> None:
    """Refuses a run whose entries contradict each other.

    Raises:
        TrainError: they do.
    """
    if config.epochs is not None and config.steps is not None:
        raise TrainError("epochs and steps are given; a run ends after one of them")
    require_schedule(config.schedule, config.steps)
    config.rows_on_each(1)


def _require_weights(name: str, weights: str | None, floats: Sequence[str]) -> None:
    """Refuses a name that is neither an integer format's or recipe's nor one of `floats`."""
    if weights is None or weights in floats:
        return
    with contextlib.suppress(QuantizationError):
        if recipe_of(weights).default.is_quantized:
            return
    allowed = [*floats, *RECIPES, *(name for name in OFFERED_NAMES if name != "float32")]
    raise TrainError(f"{name} is {shown(weights)}; allowed are {', '.join(allowed)}")


def _checked(config: TuningConfig) -> TuningConfig:
    """What no single entry can say."""
    tables = [name for name in ("lora", "prompt", "state") if getattr(config, name) is not None]
    if len(tables) > 1:
        raise TrainError(f"{' and '.join(tables)} are given; a run trains one of them, or all weights")
    if config.quantization_aware is not None and tables:
        raise TrainError(f"quantization_aware is given with {tables[0]}; it trains all weights")
    if config.data.packing and (config.prompt or config.state):
        raise TrainError(f"data.packing is true; a tuned {tables[0]} begins a row, which can hold one conversation")
    if config.lora is not None and config.lora.gates and config.lora.dropout:
        raise TrainError("lora.gates is true with a lora.dropout; PEFT has none for parameters that are no linear's")
    require_run(config)
    _require_weights("quantization_aware", config.quantization_aware, ())
    if config.state is not None:
        _require_weights("state.weights", config.state.weights, FLOATS)
    if not config.sources:
        raise TrainError("sources is empty; there must be at least one")
    for name, source in config.sources.items():
        if not source.files:
            raise TrainError(f"sources.{name}.files is empty; it must name at least one file")
        if (source.prompt is None) != (source.answer is None):
            raise TrainError(f"sources.{name} must have both prompt and answer, or neither")
        if source.instruction and source.prompt is None:
            raise TrainError(f"sources.{name}.instruction is given without prompt and answer")
    return config
