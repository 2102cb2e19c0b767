"""Names of weights: those of the files that transformers loads and saves, and those of the model's own parameters."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from griffinlm.checkpoint.errors import CheckpointError, faults_error
from griffinlm.checkpoint.names import SAME, TABLES, TIED_HEAD, Layout, TableName, entries
from griffinlm.config import EMBEDDING, ModelConfig

PREFIX = "model."
"""Of the base model's parameters in a model with a head."""


class Unpack(ConversionOps):
    """The first of our tensors in one of a file."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        (values,) = input_dict.values()
        values = values[0] if isinstance(values, list) else values
        with suppress(IndexError):  # a tensor of another rank, which the loader reports with its shape
            values = _unpacked(self.layout, values)
        return {target_patterns[0]: values}


def _unpacked(layout: Layout, values: Any) -> Tensor:
    """The layouts of these tables hold one of our tensors, and are written with what arrays and tensors share."""
    (unpacked,) = layout.unpack(values)
    return unpacked.contiguous()  # pyright: ignore[reportAttributeAccessIssue]


def transforms() -> list[WeightRenaming | WeightConverter]:
    """How `from_pretrained` finds the parameters in files of published names; it knows of our own by itself."""
    found: dict[str, WeightRenaming | WeightConverter] = {}
    for table in ("recurrent_gemma", "gemma"):
        for row in TABLES[table]:
            theirs = row.theirs.removeprefix("model.").removeprefix("layers.{i}.").replace(".", r"\.")
            (ours,) = (name.removeprefix("layers.{i}.") for name in row.ours)
            # `norm` is not the end of `final_norm`.
            source = rf"(?<!\w){theirs}$"
            if row.layout is SAME:
                found[source] = WeightRenaming(source, ours)
            else:
                found[source] = WeightConverter([source], [ours], [Unpack(row.layout)])
    return list(found.values())


def to_file(table: TableName, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of a model, with or without a head of another task, as a file of the format names them.

    The tied head is left out. What is no parameter of the base model keeps its name.

    Raises:
        CheckpointError: parameters are missing.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in weights) else ""
    rest = {name: values for name, values in weights.items() if name != TIED_HEAD}
    missing = [f"{prefix + name} is missing" for name in config.parameter_shapes() if prefix + name not in rest]
    if missing:
        raise faults_error("the model to be saved", missing)
    named = {}
    for entry in entries(table, config):
        values: Any = rest.pop(prefix + entry.ours[0])
        packed: Any = entry.layout.pack(values)
        named[entry.theirs] = packed.contiguous()
    return {**named, **rest}


def from_file(config: ModelConfig, weights: dict[str, Tensor], prefix: str, has_head: bool) -> None:
    """Renames, in place, what `to_file` named, and puts the tied head in; other names stay.

    Args:
        prefix: of the base model's parameters in the model that the weights are for.
        has_head: whether that model has a tied head.
    """
    tables: tuple[TableName, ...] = ("griffinlm", "recurrent_gemma", "gemma")
    for table in tables:
        with suppress(CheckpointError):  # the format has no such model
            for entry in entries(table, config):
                ours = prefix + entry.ours[0]
                if entry.theirs in weights and entry.theirs != ours:
                    weights[ours] = _unpacked(entry.layout, weights.pop(entry.theirs))
    if has_head and PREFIX + EMBEDDING in weights:
        weights.setdefault(TIED_HEAD, weights[PREFIX + EMBEDDING])
