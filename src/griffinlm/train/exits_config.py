"""ExitsConfig: how a run trains the exits by which tokens may leave the model early."""

from dataclasses import dataclass
from typing import Annotated, Literal

from griffinlm.config import ModelConfig
from griffinlm.train.errors import TrainError
from griffinlm.train.table import Range, Share

COEFFICIENTS = {"aggressive": 0.1, "layer_skip": 0.2}
"""What the papers chose, by the loss that has one."""
MAX_LAYER_DROPOUT = 0.9
READ_WITH = {"full_share": "skips", "least_threshold": "skips", "dropout_curriculum": "layer_dropout"}
"""Entries that nothing reads without another one."""


@dataclass(frozen=True)
class ExitsConfig:
    """Losses behind the loops of a recursive model, or behind some layers of another, by the model's one head."""

    loss: Literal["weighted", "aggressive", "layer_skip"]
    """How the losses of the exits and that of full depth add up; see `griffinlm.train.exits`."""
    coefficient: Annotated[float, Range(0.0, 1e6)] | None = None
    """c of aggressive (0.1 if not given), e_scale of layer_skip (0.2)."""
    layers: tuple[Annotated[int, Range(1, 10_000)], ...] = ()
    """Behind how many layers each exit stands, in a model without loops. Loops have one behind each but the last."""
    curriculum: Literal["all", "rotational", "gradual"] = "all"
    """Which exits a step trains: all; every `rotation`-th, the next ones a step later; or from the deepest on, one more
    every T / 2L steps."""
    rotation: Annotated[int, Range(2, 10_000)] | None = None
    layer_dropout: Annotated[float, Range(0.0, MAX_LAYER_DROPOUT)] = 0.0
    """p_max: with which probability a row passes the last layer by; earlier ones less, exponentially by depth."""
    dropout_curriculum: Literal["constant", "exponential"] = "constant"
    """Whether layer dropout is so from the first step on, or grows exponentially up to the last one."""
    skips: bool = False
    """Train tokens to leave where the model is sure, and deeper loops without them: `recursion.skips` of the model."""
    full_share: Share = 0.25
    """Share of the rows that no token leaves, where there are skips."""
    least_threshold: Share = 0.2
    """The other rows draw their threshold between this confidence and 1."""


def num_exits(exits: ExitsConfig, model: ModelConfig) -> int:
    """How many exits stand before full depth."""
    return model.num_loops - 1 or len(exits.layers)


def require_exits(exits: ExitsConfig, model: ModelConfig) -> None:
    """Refuses exits that contradict each other or do not fit a model.

    Raises:
        TrainError: they do.
    """
    if exits.coefficient is not None and exits.loss not in COEFFICIENTS:
        raise TrainError(f"exits.coefficient is given with loss {exits.loss!r}; {' and '.join(COEFFICIENTS)} have one")
    if (exits.rotation is not None) != (exits.curriculum == "rotational"):
        raise TrainError("exits.rotation must be given exactly where exits.curriculum is rotational")
    for name, other in READ_WITH.items():
        value = getattr(exits, name)
        if value != getattr(ExitsConfig, name) and not getattr(exits, other):
            raise TrainError(f"exits.{name} is {value!r}; it is read only where exits.{other} is given")
    if model.num_loops > 1:
        if exits.layers:
            raise TrainError(
                f"exits.layers is given for a model of {model.num_loops} loops; its exits stand behind loops"
            )
        return
    if exits.skips:
        raise TrainError("exits.skips is true; the model has no loops", hint="griffin recursive makes a model that has")
    if not exits.layers:
        raise TrainError("exits.layers is empty; a model without loops must have at least one exit")
    wrong = [layer for layer in exits.layers if layer >= model.num_layers]
    if wrong or list(exits.layers) != sorted(set(exits.layers)):
        raise TrainError(f"exits.layers is {list(exits.layers)}; it must ascend and lie in 1..{model.num_layers - 1}")
