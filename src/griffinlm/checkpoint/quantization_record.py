"""What the config.json of a quantized checkpoint says of its weights."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from griffinlm.quantization import QuantizationError, Recipe

FORMAT_VERSION = 2
"""Raised when the stored arrays change their meaning. Version 1 differs in `int8-channel` and is read without it."""
Method = Literal["clip", "activation", "random"]
_FIELDS = ("format_version", "recipe", "method", "source_digest", "checksums")


@dataclass(frozen=True)
class Quantization:
    """How a checkpoint was quantized, and what its files must be."""

    recipe: Recipe
    method: Method
    """What chose the scales: the squared error of the weights, that error weighted by activations, or a draw."""
    source_digest: str | None
    """Digest of the checkpoint that was quantized; None for random weights."""
    checksums: Mapping[str, str]
    """SHA-256 of every file of weights by its name."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives back an equal record."""
        return {
            "format_version": FORMAT_VERSION,
            "recipe": self.recipe.to_dict(),
            "method": self.method,
            "source_digest": self.source_digest,
            "checksums": dict(self.checksums),
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Quantization":
        """The record that `to_dict` wrote.

        Raises:
            QuantizationError: the version is another, or a field is unknown, missing, or of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise QuantizationError(f"quantization is a {type(values).__name__}; it must be a table of fields")
        version = values.get("format_version")
        if version not in (1, FORMAT_VERSION) or isinstance(version, bool):
            raise QuantizationError(
                f"quantization.format_version is {str(version)[:60]!r}; "
                f"this version of griffinlm reads {FORMAT_VERSION}"
            )
        if values.keys() != set(_FIELDS):
            different = ", ".join(sorted(map(repr, values.keys() ^ set(_FIELDS)))[:5])
            raise QuantizationError(f"quantization has unknown or missing fields: {different}")
        method, digest, checksums = values["method"], values["source_digest"], values["checksums"]
        if method not in get_args(Method):
            raise QuantizationError(
                f"quantization.method is {str(method)[:60]!r}; allowed are {', '.join(get_args(Method))}"
            )
        if not (digest is None and method == "random") and not _is_sha256(digest):
            raise QuantizationError("quantization.source_digest must be a SHA-256, or null for random weights")
        if not isinstance(checksums, Mapping) or not all(map(_is_sha256, checksums.values())):
            raise QuantizationError("quantization.checksums must be a table of file names and SHA-256")
        recipe = Recipe.from_dict(values["recipe"])
        if version != FORMAT_VERSION and recipe.has_channels:
            raise QuantizationError(
                f"quantization.format_version is {version}, whose int8-channel is stored otherwise; "
                f"this version of griffinlm reads {FORMAT_VERSION}",
                hint="quantize the model again",
            )
        return cls(recipe, method, digest, dict(checksums))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
