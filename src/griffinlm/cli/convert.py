"""griffin convert: a checkpoint into another format, or random weights of a preset."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    import numpy as np

    from griffinlm.config import ModelConfig


class ConvertError(GriffinError):
    """A conversion that was not asked for in full, or in two ways at once."""


class _Source(NamedTuple):
    """What is to be written."""

    config: "ModelConfig"
    tensors: "Iterator[tuple[str, np.ndarray]]"
    tokenizer_directory: Path | None
    directory: Path | None
    """What is read, if anything is."""


def convert(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="[SRC] DST", help="A checkpoint of any format, and a directory that is not there yet."),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FORMAT", help="huggingface, deepmind or griffinlm; with --random griffinlm if not given."
        ),
    ] = None,
    random: Annotated[
        str | None, typer.Option("--random", metavar="PRESET", help="Write random weights of a preset; takes no SRC.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Which random weights; 0 if not given.", min=0)
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET", help="What SRC is, where it does not say so itself.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The same, as a config.json in any known form.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; each tensor's own if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in another format, or random weights.

    Tensors go through memory a few at a time; DST appears when it is complete, or not at all.
    """
    if random is not None:
        _refuse("--random", {"SRC": len(paths) > 1, "--preset": preset is not None, "--config": config is not None})
        source = _drawn(random, seed or 0)
    else:
        _refuse("SRC", {"--seed": seed is not None})
        if len(paths) != 2 or to is None:
            raise ConvertError(
                f"SRC, DST and --to must be given; there are {len(paths)} paths and --to is {to}",
                hint="griffin convert SRC DST --to FORMAT, or griffin convert --random PRESET DST",
            )
        source = _opened(paths[0], preset, config)

    from griffinlm.checkpoint import write_checkpoint
    from griffinlm.checkpoint.exits import copy_exits
    from griffinlm.progress import progress

    num_tensors = len(source.config.parameter_shapes())
    write_checkpoint(
        source.config,
        progress(source.tensors, "writing", num_tensors),
        paths[-1],
        to or "griffinlm",  # pyright: ignore[reportArgumentType]  (write_checkpoint refuses an unknown format)
        dtype,
        source.tokenizer_directory,
        write_rest=None if source.directory is None else partial(copy_exits, source.directory),
    )
    if as_json:
        print_json({"path": paths[-1], "format": to or "griffinlm", "tensors": num_tensors})
    else:
        print(paths[-1])


def _refuse(option: str, others: dict[str, bool]) -> None:
    for name, is_given in others.items():
        if is_given:
            raise ConvertError(f"{name} is given together with {option}; only one of them can be")


def _opened(source: str, preset: str | None, config_file: Path | None) -> _Source:
    from griffinlm.checkpoint import open_checkpoint, read_config_file
    from griffinlm.config import ModelConfig
    from griffinlm.loading import find_model

    config = None
    if preset is not None:
        _refuse("--preset", {"--config": config_file is not None})
        config = ModelConfig.preset(preset)
    elif config_file is not None:
        config = read_config_file(config_file).config
    checkpoint = open_checkpoint(find_model(source), config)
    return _Source(checkpoint.config, checkpoint.tensors(), checkpoint.tokenizer_directory, checkpoint.path)


def _drawn(preset: str, seed: int) -> _Source:
    from griffinlm.checkpoint import initial_tensors
    from griffinlm.config import ModelConfig

    config = ModelConfig.preset(preset)
    return _Source(config, initial_tensors(config, seed), None, None)
