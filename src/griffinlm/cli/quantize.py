"""griffin quantize: a checkpoint with int4 or int8 weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json, print_table
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    import numpy as np

    from griffinlm.checkpoint import Checkpoint, LayerReport
    from griffinlm.quantization import Recipe


class QuantizeError(GriffinError):
    """Options that name no format, or a calibration that cannot be made."""


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As in `griffin generate --model`.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A directory that is not there yet.")],
    bits: Annotated[int, typer.Option("--bits", metavar="4|8", help="Bits of a weight.")] = 4,
    block: Annotated[
        str | None,
        typer.Option(
            "--block",
            metavar="32|128|channel",
            help="Inputs that share a scale; if not given 128 for 4 bits, channel for 8.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="PATTERN=FORMAT",
            help="Another format for the parameters that match, as in '*.mlp.down.weight=int8-block128'; "
            "may be repeated, the first match wins.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="FILE",
            help="Weight the error of each input by its activations on this text; files as in `griffin evaluate`.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint with int4 or int8 weights.

    The error and size of every matrix are told. Biases, norms, convolutions and decays stay float32. Tensors go through
    memory one by one; DST appears when it is complete, or not at all.
    """
    from griffinlm.checkpoint import check_quantizable, open_checkpoint, write_quantized
    from griffinlm.loading import find_model

    recipe = _recipe(bits, block, layer or [])
    checkpoint = open_checkpoint(find_model(source))
    check_quantizable(checkpoint, recipe, destination)
    energy = None if calibration is None else _input_energy(checkpoint, calibration)
    layers = write_quantized(checkpoint, recipe, destination, energy)
    before, after = checkpoint.num_bytes, open_checkpoint(destination).num_bytes
    if as_json:
        print_json(
            {
                "path": destination,
                "recipe": recipe.to_dict(),
                "method": "clip" if energy is None else "activation",
                "bytes_before": before,
                "bytes": after,
                "layers": [
                    {
                        "parameter": one.parameter,
                        "format": one.format,
                        "bytes": one.num_bytes,
                        "relative_error": one.relative_error,
                    }
                    for one in layers
                ],
            }
        )
        return
    print_table(["parameter", "format", "bytes", "relative error"], [_row(one) for one in layers])
    print(f"\n{destination}: {after:,} bytes of {before:,}")


def _recipe(bits: int, block: str | None, layers: list[str]) -> "Recipe":
    from griffinlm.quantization import RECIPES, Format, Recipe

    if f"int{bits}" not in RECIPES:
        raise QuantizeError(f"--bits is {bits}; allowed are 4 and 8")
    default = RECIPES[f"int{bits}"].default
    if block is not None:
        default = Format.parse(f"int{bits}-channel" if block == "channel" else f"int{bits}-block{block}")
    overrides = []
    for one in layers:
        pattern, equals, format = one.rpartition("=")
        if not equals or not pattern:
            raise QuantizeError(f"--layer is {one[:100]!r}; it must be PATTERN=FORMAT")
        overrides.append((pattern, Format.parse(format)))
    return Recipe(default, tuple(overrides))


def _input_energy(checkpoint: "Checkpoint", file: Path) -> "dict[str, np.ndarray]":
    """The mean square of every input of every matrix while the unquantized model reads a text."""
    from griffinlm.evaluate.documents import read_token_ids
    from griffinlm.text import Tokenizer

    if checkpoint.tokenizer_directory is None:
        raise QuantizeError(f"{checkpoint.path} has no tokenizer, which --calibration needs")
    from griffinlm.edge.calibration import input_energy

    tokenizer = Tokenizer.from_directory(checkpoint.tokenizer_directory)
    return input_energy(checkpoint, read_token_ids(file, tokenizer))


def _row(layer: "LayerReport") -> list[str]:
    return [layer.parameter, layer.format, f"{layer.num_bytes:,}", f"{layer.relative_error:.4f}"]
