"""adapter_config.json of a PEFT directory: the rank and the scaling of every matrix."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.config_file import read_json_table
from griffinlm.checkpoint.errors import faults_error
from griffinlm.errors import shown

MAX_RANK, MAX_ALPHA = 1 << 16, 1e6
MAX_PATTERNS, MAX_PATTERN_CHARACTERS = 4096, 200

USED_FIELDS = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_parameters")
NO_MATTER_FIELDS = frozenset(
    [
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
        *("runtime_config", "megatron_core", "target_modules", "exclude_modules", "layers_to_transform"),
        *("layers_pattern", "lora_dropout", "eva_config", "qalora_group_size"),
    ]
)
"""Fields that chose what was trained and how; the tensors say the rest."""
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the weights of the model as they are; an adapter of another needs others."""


@dataclass(frozen=True)
class PeftConfig:
    """What decides the numbers of a low-rank adapter beside its tensors."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    rank_pattern: Mapping[re.Pattern[str], int]
    alpha_pattern: Mapping[re.Pattern[str], float]
    target_parameters: tuple[str, ...]

    def rank_of(self, name: str) -> int:
        """Rank of the module or parameter `name`, in the names of the model that the adapter was trained on."""
        return _matched(self.rank_pattern, name, self.rank)

    def scaling_of(self, name: str) -> float:
        """alpha / r, or alpha / sqrt(r) where the adapter is rank-stabilized (arXiv 2312.03732)."""
        rank = self.rank_of(name)
        return _matched(self.alpha_pattern, name, self.alpha) / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def targets(self, parameter: str) -> bool:
        """Whether the parameter itself was adapted, and not the module that holds it."""
        return any(parameter == name or parameter.endswith(f".{name}") for name in self.target_parameters)


def read_peft_config(file: Path) -> PeftConfig:
    """The configuration of a low-rank adapter.

    Raises:
        CheckpointError: the file cannot be read, a value is out of its range, or the adapter is of another kind; all
            faults in `.faults`.
    """
    values = {"use_rslora": False, "bias": "none", "init_lora_weights": True, **read_json_table(file)}
    faults: list[str] = []
    if values.get("peft_type") != "LORA":
        faults.append(f"peft_type is {shown(values.get('peft_type'))}; it must be LORA")
    if values.pop("bias") != "none":
        faults.append("bias is trained; it must be none")
    method = values.pop("init_lora_weights")
    if method not in UNCHANGED_BASE:
        faults.append(
            f"init_lora_weights is {shown(method)}, which changes the model's own weights; save the adapter converted"
        )
    others = values.keys() - NO_MATTER_FIELDS - set(USED_FIELDS)
    faults += [f"{name} is {shown(values[name])}; it is not supported" for name in sorted(others) if values[name]]

    def number(name: str, is_fit: Callable[[Any], bool], allowed: str) -> Any:
        if not is_fit(values.get(name)):
            faults.append(f"{name} is {shown(values.get(name))}; it must be {allowed}")
        return values.get(name)

    config = PeftConfig(
        number("r", _is_rank, f"a whole number in 1..{MAX_RANK}"),
        number("lora_alpha", _is_alpha, f"a number up to {MAX_ALPHA:g}"),
        number("use_rslora", lambda value: isinstance(value, bool), "true or false"),
        _patterns(values, "rank_pattern", _is_rank, faults),
        _patterns(values, "alpha_pattern", _is_alpha, faults),
        _names(values, "target_parameters", faults),
    )
    if faults:
        raise faults_error(file, faults)
    return config


def _patterns(
    values: Mapping[str, Any], name: str, is_fit: Callable[[Any], bool], faults: list[str]
) -> dict[re.Pattern[str], Any]:
    """The keys as PEFT matches them: a regular expression for the end of a name, from a dot on."""
    table = values.get(name) or {}
    if not isinstance(table, Mapping) or len(table) > MAX_PATTERNS or not all(map(is_fit, table.values())):
        faults.append(f"{name} must be a table of at most {MAX_PATTERNS} patterns and numbers")
        return {}
    found = {}
    for key, value in table.items():
        try:
            if not _is_quick(key):
                raise re.error("it is too long or repeats too much")
            found[re.compile(rf"(.*\.)?({key})$")] = value
        except (re.error, OverflowError) as error:
            faults.append(f"{name} has the pattern {shown(key)}, which cannot be used: {error}")
    return found


def _is_quick(pattern: str) -> bool:
    """Whether matching takes little time whatever the name: at most two repetitions, none of a group."""
    repetitions = len(re.findall(r"[*+?{]", pattern))
    return len(pattern) <= MAX_PATTERN_CHARACTERS and repetitions <= 2 and not re.search(r"\)[*+?{]|\(\?", pattern)


def _names(values: Mapping[str, Any], name: str, faults: list[str]) -> tuple[str, ...]:
    found = values.get(name) or []
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        faults.append(f"{name} is {shown(found)}; it must be a list of names")
        return ()
    return tuple(found)


def _matched(patterns: Mapping[re.Pattern[str], Any], name: str, otherwise: Any) -> Any:
    return next((value for pattern, value in patterns.items() if pattern.match(name)), otherwise)


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_ALPHA
