"""PretrainConfig: everything that decides a pretraining run, read from one TOML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from griffinlm.config import ConfigError, ModelConfig
from griffinlm.errors import shown
from griffinlm.loading import bundled_models, find_model
from griffinlm.train.errors import TrainError
from griffinlm.train.exits_config import ExitsConfig
from griffinlm.train.table import Range, Share, read_table, read_toml, read_value

Count = Annotated[int, Range(1, 2**40)]

MOST_ROWS = 2**53
"""Of a run; up to here a float holds every number of rows, and so does the share of a source."""


def rows_on_each(batch_rows: int, rows_per_device: int | None, num_devices: int) -> int:
    """Rows that each of some devices reads at once.

    Args:
        rows_per_device: None divides a step's rows over the devices.

    Raises:
        TrainError: a step's rows do not divide over the devices.
    """
    rows = rows_per_device or batch_rows // num_devices
    if not rows or batch_rows % (rows * num_devices):
        raise TrainError(
            f"batch_rows is {batch_rows}; it must be a multiple of rows_per_device ({rows}) "
            f"times the number of processes ({num_devices})"
        )
    return rows


@dataclass(frozen=True)
class SourceConfig:
    """A set of documents: text files, which are packed when the run starts, or a directory of `griffin train pack`."""

    files: tuple[Path, ...] = ()
    """`.jsonl` (also .xz, .gz, .zst) or `.txt`."""
    packed: Path | None = None
    field: str = "text"
    """Field of a JSON row that holds the text."""


@dataclass(frozen=True)
class DataConfig:
    """How documents become rows of tokens."""

    row_tokens: Annotated[int, Range(2, 2**24)]
    """T, tokens that a row is read with."""
    held_out_share: Annotated[float, Range(0.0, 0.5)] = 0.01
    """Share of the documents that are kept out of training, chosen by a hash of their text."""
    bad_rows: Literal["skip", "refuse"] = "refuse"
    """What is done with a row that is no document; either way it is told with file and line."""
    largest_row_bytes: Count = 8_000_000
    processes: Annotated[int, Range(1, 1024)] = 1
    """Processes that cut text into tokens."""


@dataclass(frozen=True)
class StageConfig:
    """A part of the run with a mixture of its own; it goes on in every source where the stage before ended."""

    steps: Count
    mixture: dict[str, Annotated[float, Range(0.0, 1e9)]]
    """Weight of every source; shares of the rows are these over their sum."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; RG-LRU parameters, norm scales and biases are never decayed."""

    learning_rate: Annotated[float, Range(0.0, 10.0)]
    """The largest, which the schedule reaches after the warm-up."""
    beta1: Annotated[float, Range(0.0, 0.999999)] = 0.9
    beta2: Annotated[float, Range(0.0, 0.999999)] = 0.95
    epsilon: Annotated[float, Range(1e-20, 1.0)] = 1e-8
    weight_decay: Annotated[float, Range(0.0, 10.0)] = 0.1
    clip_norm: Annotated[float, Range(1e-9)] = 1.0
    """Largest norm of a step's gradient."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps: warm-up, then cosine, or constant and a decay at the end (WSD)."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warm_up_steps: Annotated[int, Range(0)] = 0
    decay_steps: Annotated[int, Range(1)] | None = None
    """Steps at the end in which WSD falls; the last stage's if not given."""
    final_share: Share = 0.1
    """Share of the learning rate that the last step ends with."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Bits per byte of held-out text."""

    every_steps: Count | None = None
    """None evaluates at the end only."""
    max_tokens: Count = 200_000
    """Most tokens of a source that are read."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is written down, so that it can go on from there."""

    every_steps: Count
    num_kept: Annotated[int, Range(1, 10_000)] = 2


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run. Paths are relative to the folder of the file."""

    output: Path
    """Directory of everything that the run writes; the model itself appears in its folder `model`."""
    tokenizer: Path
    """Directory of a tokenizer or of a model that has one."""
    model: dict[str, Any]
    """`preset = NAME`, with any fields of a model configuration changed; all such fields; or `directory = DIR`, a
    model whose training goes on."""
    sources: dict[str, SourceConfig]
    data: DataConfig
    batch_rows: Count
    """Rows of an optimizer step, over all devices."""
    stages: tuple[StageConfig, ...]
    optimizer: OptimizerConfig
    checkpoints: CheckpointConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    rows_per_device: Count | None = None
    """Rows that a device reads at once; the rest of a step is accumulated. None is as many as a step has."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the activations; weights, gradients and optimizer are float32."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """What products of float32 matrices may round their factors to, where the device has units for that: high is
    TensorFloat-32, medium bfloat16; sums and results stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    """Recompute every block in the backward pass instead of keeping its activations."""
    quantization_aware: str | None = None
    """Train under fake quantization: `int4`, `int8` or a format, as `griffin quantize` will store the weights."""
    teacher: Path | None = None
    """Directory of a model of the same vocabulary whose probabilities are learned instead of the next token."""
    teacher_share: Share = 1.0
    """s of the loss s KL(teacher || model) + (1 - s) cross-entropy of the next token, where there is a teacher."""
    exits: ExitsConfig | None = None
    """Exits that are trained with the model; None trains full depth alone."""
    prefix_tokens: Count | None = None
    """N made-up tokens whose state every document begins from, trained with the model; None begins from nothing."""
    loss_chunk_tokens: Count = 2048
    """Tokens whose logits are held at once."""
    deterministic: bool = False
    """Only operations that give the same bits every time, which a GPU has not for all by itself."""
    log_every_steps: Count = 10
    seed: Annotated[int, Range(0, 2**31)] = 0

    @property
    def num_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def step_tokens(self) -> int:
        """Tokens that an optimizer step reads."""
        return self.batch_rows * self.data.row_tokens

    def rows_on_each(self, num_devices: int) -> int:
        """Rows that each of some devices reads at once.

        Raises:
            TrainError: a step's rows do not divide over the devices.
        """
        return rows_on_each(self.batch_rows, self.rows_per_device, num_devices)


def read_pretrain_config(path: Path, changes: Sequence[str] = ()) -> PretrainConfig:
    """The run that a TOML file describes, `changes` (`optimizer.learning_rate=1e-3`) made to it.

    Raises:
        TrainError: the file cannot be read, or an entry is unknown, missing, of the wrong type, out of range, or does
            not fit the others.
    """
    config = read_table(PretrainConfig, read_toml(path, changes))
    return _checked(_with_paths_from(config, path.parent))


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The model of a `model` table without `directory`: a preset with changed fields, or all fields.

    Raises:
        TrainError: a field is unknown, missing or out of its range.
    """
    fields = dict(values)
    preset = fields.pop("preset", None)
    try:
        if preset is not None:
            if not isinstance(preset, str):
                raise TrainError(f"model.preset is {shown(preset)}; it must be a name")
            fields = _merged(ModelConfig.preset(preset).to_dict(), fields)
        return ModelConfig.from_dict(fields)
    except ConfigError as error:
        raise TrainError(f"model: {error}", error.hint) from error


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with changes; those of an inner table are changes of it."""
    inner = {name: base.get(name) for name, value in changes.items() if isinstance(value, Mapping)}
    merged = {n: _merged(old, changes[n]) if isinstance(old, dict) else changes[n] for n, old in inner.items()}
    return {**base, **changes, **merged}


def _with_paths_from(config: PretrainConfig, folder: Path) -> PretrainConfig:
    sources = {
        name: replace(
            source,
            files=tuple(folder / file for file in source.files),
            packed=None if source.packed is None else folder / source.packed,
        )
        for name, source in config.sources.items()
    }
    model = config.model
    if "directory" in model:
        model = {**model, "directory": str(_model_of(folder, read_value(Path, model["directory"], "model.directory")))}
    return replace(
        config,
        output=folder / config.output,
        tokenizer=_model_of(folder, config.tokenizer),
        sources=sources,
        model=model,
        teacher=None if config.teacher is None else _model_of(folder, config.teacher),
    )


def _model_of(folder: Path, path: Path) -> Path:
    """A directory, relative to that of the run's file, or else the bundled model of that name."""
    here = folder / path
    return find_model(str(path)) if not here.exists() and str(path) in bundled_models() else here


def require_schedule(schedule: ScheduleConfig, num_steps: int | None) -> None:
    """Refuses a schedule that contradicts itself or is longer than a run of so many steps, where they are known.

    Raises:
        TrainError: it does.
    """
    if schedule.decay_steps is not None and schedule.kind != "wsd":
        raise TrainError(f"schedule.decay_steps is given with kind {schedule.kind!r}; only wsd has one")
    if num_steps is not None and schedule.warm_up_steps + (schedule.decay_steps or 0) > num_steps:
        raise TrainError(f"schedule.warm_up_steps and decay_steps are more than the {num_steps} steps of the run")


def _checked(config: PretrainConfig) -> PretrainConfig:
    """What no single entry can say."""
    if not config.stages:
        raise TrainError("stages is empty; there must be at least one")
    for name, source in config.sources.items():
        if bool(source.files) == (source.packed is not None):
            raise TrainError(f"sources.{name} must have either files or packed")
        if not name.replace("-", "_").isidentifier():
            raise TrainError(f"source {name!r} is no name; letters, digits, - and _ are allowed")
    for index, stage in enumerate(config.stages):
        strangers = [name for name in stage.mixture if name not in config.sources]
        if strangers:
            raise TrainError(
                f"stages.{index}.mixture names {', '.join(strangers)}; sources are {', '.join(config.sources)}"
            )
        if not any(stage.mixture.values()):
            raise TrainError(f"stages.{index}.mixture has no weight above 0")
    unused = [name for name in config.sources if not any(stage.mixture.get(name) for stage in config.stages)]
    if unused:
        raise TrainError(f"source {', '.join(unused)} has a weight in no stage")
    if config.num_steps * config.batch_rows > MOST_ROWS:
        raise TrainError(f"all stages have {config.num_steps * config.batch_rows:,} rows; most are {MOST_ROWS:,}")
    config.rows_on_each(1)
    if config.teacher is None and config.teacher_share != 1.0:
        raise TrainError(f"teacher_share is {config.teacher_share}; there is no teacher")
    if config.prefix_tokens is not None and config.exits is not None:
        raise TrainError("prefix_tokens is given with exits; a run has one of the two")
    if config.prefix_tokens is not None and config.quantization_aware is not None:
        raise TrainError("prefix_tokens is given with quantization_aware; a prefix is a state of float32 weights")
    num_tokens = config.num_steps * config.step_tokens
    if config.prefix_tokens is not None and config.prefix_tokens > num_tokens:
        raise TrainError(f"prefix_tokens is {config.prefix_tokens}; the run reads {num_tokens} tokens")
    require_schedule(config.schedule, config.num_steps)
    if "directory" in config.model and len(config.model) > 1:
        raise TrainError("model.directory is given with other fields; a model that goes on keeps its own")
    return config
