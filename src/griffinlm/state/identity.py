"""What a state belongs to: the fingerprint of a model as it runs."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Protocol

from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError

FORMAT_VERSION = 1


class StateError(GriffinError):
    """A state that does not fit: another model's, damaged, or used where it cannot be."""


@dataclass(frozen=True)
class Fingerprint:
    """What a state belongs to. Two models may exchange states exactly where their fingerprints are equal."""

    weights: str
    """Digest of the source weights, of the configuration they run in, and of the exits where tokens leave early."""
    precision: str
    window_dtype: str
    tokenizer: str
    """Digest of the tokenizer, empty where the model has none."""
    adapter: str = ""
    """Digest of the adapter that the state was made under, empty where there was none."""
    format_version: int = FORMAT_VERSION


class Identity:
    """The fingerprint of a loaded model, computed when first asked for (the weights must be read once more)."""

    def __init__(self, compute: Callable[[], Fingerprint]) -> None:
        self._compute = compute

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return self._compute()

    def require_same(self, other: "Identity", what: str) -> None:
        """StateError, beginning with `what`, where what belongs to `other` is not this one's."""
        if other is not self:
            self.require(asdict(other.fingerprint), what)

    def require(self, found: Mapping[str, object], what: str) -> None:
        """StateError, beginning with `what`, where a fingerprint as a table is not this one's."""
        wanted = asdict(self.fingerprint)
        different = [name for name, value in wanted.items() if found.get(name) != value]
        if different:
            pairs = (f"{name} {_short(found.get(name))} instead of {_short(wanted[name])}" for name in different)
            raise StateError(
                f"{what} belongs to another model: {', '.join(pairs)}",
                hint="use it with the model, precision, window type, exits and adapter it was made with",
            )


def _short(value: object) -> str:
    text = str(value) or "none"
    return text if len(text) <= 16 else text[:12] + "..."


class StateOwner(Protocol):
    """What `State.load` must know of a model."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def precision(self) -> str: ...
    @property
    def window_dtype(self) -> str: ...
