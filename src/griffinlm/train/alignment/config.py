"""What decides a run on preferences or rewards, read from one TOML file."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from griffinlm.train.config import Count
from griffinlm.train.errors import TrainError
from griffinlm.train.table import Range, read_table, read_toml
from griffinlm.train.tuning_config import TunedRun, require_run

REWARD, UNENDED = "reward", "unended"
"""Names in the log: of the reward model that is learned from, and of answers without an end."""


@dataclass(frozen=True)
class RowsConfig:
    """A set of rows."""

    files: tuple[Path, ...] = ()
    """`.jsonl` (also .xz, .gz, .zst)."""
    max_rows: Count | None = None
    """Rows at the beginning that are taken; None is all."""


@dataclass(frozen=True)
class AlignmentDataConfig:
    """How rows become tokens."""

    row_tokens: Annotated[int, Range(2, 2**24)] = 1024
    """Most tokens of a prompt with an answer; a longer row is left out, since its end is what is judged."""
    held_out_share: Annotated[float, Range(0.0, 0.5)] = 0.01
    """Share of the rows that are kept out of training, chosen by a hash of what the user says first."""
    bad_rows: Literal["skip", "refuse"] = "refuse"
    """What is done with a row that is none; either way it is told with file and line."""
    largest_row_bytes: Count = 8_000_000


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig(TunedRun):
    """What runs on preferences and rewards have in common. All weights are trained; the output gets `model`."""

    sources: dict[str, RowsConfig]
    data: AlignmentDataConfig = field(default_factory=AlignmentDataConfig)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(AlignmentConfig):
    """A reward model from pairs of answers; `batch_rows` are pairs."""

    centering: Annotated[float, Range(0.0, 100.0)] = 0.0
    """c of the term c (r_chosen + r_rejected)^2, which holds rewards near 0 (arXiv 2312.09244, equation 2)."""


@dataclass(frozen=True, kw_only=True)
class DpoConfig(AlignmentConfig):
    """A policy from pairs of answers, without rewards (arXiv 2305.18290); `batch_rows` are pairs."""

    kl_coefficient: Annotated[float, Range(1e-6, 100.0)] = 0.1
    """beta, the weight of the distance to the model that the run begins from."""


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """A function `(row, answer) -> number` that judges the text of an answer to a row of the files."""

    file: Path
    """Python, run as it is read."""
    function: str
    weight: Annotated[float, Range(-1e6, 1e6)] = 1.0
    """By which the number is multiplied in the reward; with 0 it is logged alone."""


@dataclass(frozen=True, kw_only=True)
class RlooConfig(AlignmentConfig):
    """A policy from rewards of its own answers (arXiv 2402.14740); `batch_rows` are answers."""

    reward: Path | None = None
    """Directory of the reward model that is learned from; None where rules alone teach."""
    rules: dict[str, RuleConfig] = field(default_factory=dict)
    """What is checked by program, by name, and added to the reward: a model's judgement of it would be guessing."""
    watched: dict[str, Path] = field(default_factory=dict)
    """Reward models that judge the answers too, by name, and teach nothing: what rises here as well is no trick."""
    num_answers: Annotated[int, Range(2, 1024)] = 4
    """k, answers to each prompt; the prompt is read once."""
    max_answer_tokens: Count = 128
    temperature: Annotated[float, Range(0.01, 100.0)] = 1.0
    kl_coefficient: Annotated[float, Range(0.0, 100.0)] = 0.05
    """beta of the reward r - beta log(policy / model that the run begins from), of the whole answer."""
    unended_penalty: Annotated[float, Range(0.0, 1e6)] = 0.0
    """Taken off the reward of an answer that did not end within `max_answer_tokens`."""

    @property
    def step_prompts(self) -> int:
        """Prompts whose answers a step reads."""
        return self.batch_rows // self.num_answers


Config = TypeVar("Config", bound=AlignmentConfig)


def read_alignment_config(kind: type[Config], path: Path, changes: Sequence[str] = ()) -> Config:
    """The run of a kind that a TOML file describes, `changes` (`optimizer.learning_rate=1e-3`) made to it.

    Raises:
        TrainError: the file cannot be read, or an entry is unknown, missing, of the wrong type, out of range, or does
            not fit the others.
    """
    config = read_table(kind, read_toml(path, changes))
    require_run(config)
    if not config.sources:
        raise TrainError("sources is empty; there must be at least one")
    folder = path.parent
    sources = {}
    for name, source in config.sources.items():
        if not source.files:
            raise TrainError(f"sources.{name}.files is empty; it must name at least one file")
        sources[name] = replace(source, files=tuple(folder / file for file in source.files))
    local = folder / config.model
    model = str(local) if local.exists() else config.model
    if isinstance(config, RlooConfig):
        _check(config)
        reward = None if config.reward is None else folder / config.reward
        watched = {name: folder / path for name, path in config.watched.items()}
        rules = {name: replace(rule, file=folder / rule.file) for name, rule in config.rules.items()}
        config = replace(config, reward=reward, watched=watched, rules=rules)
    return replace(config, output=folder / config.output, sources=sources, model=model)


def _check(config: RlooConfig) -> None:
    if config.reward is None and not config.rules:
        raise TrainError("reward is missing, and there are no rules; one of them must teach")
    rows_at_once = config.rows_per_device or config.batch_rows
    for name, rows in (("batch_rows", config.batch_rows), ("rows_per_device", rows_at_once)):
        if rows % config.num_answers:
            raise TrainError(f"{name} is {rows}; it must be a multiple of num_answers ({config.num_answers})")
    if config.max_answer_tokens >= config.data.row_tokens:
        raise TrainError(
            f"max_answer_tokens is {config.max_answer_tokens}; it must leave room for a prompt in data.row_tokens "
            f"({config.data.row_tokens})"
        )
    taken = [REWARD, UNENDED]
    for table, names in (("watched", config.watched), ("rules", config.rules)):
        for name in names:
            if name in taken:
                raise TrainError(f"{table}.{name} is given; that name is taken ({', '.join(taken)} are)")
            taken.append(name)
