"""griffin recursive: a model whose layers share parameters."""

from typing import TYPE_CHECKING, Annotated

import typer

from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json, print_table

if TYPE_CHECKING:
    from griffinlm.recursive import MatrixReport


def recursive(
    source: Annotated[str, typer.Argument(metavar="SRC", help="As in `griffin generate --model`.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="A directory that is not there yet.")],
    loops: Annotated[int, typer.Option("--loops", metavar="N", help="How often a pass goes through the layers.")],
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="NAME",
            help="What a shared layer begins as: average (of those that become it), lower (the first of them), or "
            "stepwise (layers at regular distances).",
        ),
    ] = "average",
    rank: Annotated[
        int, typer.Option("--rank", metavar="R", help="Rank by which each layer differs from the shared one; 0: none.")
    ] = 0,
    tie: Annotated[
        str, typer.Option("--tie", metavar="matrices|all", help="What layers share: matrices, or all parameters.")
    ] = "matrices",
    low_rank: Annotated[
        str,
        typer.Option(
            "--low-rank",
            metavar="svd|zero",
            help="What the terms of --rank begin as: nearest to the layer, or nothing.",
        ),
    ] = "svd",
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of what is drawn by chance.", min=0)] = 0,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", help="float32, bfloat16 or float16; each tensor's own if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a model whose layers share parameters.

    The shared layers are as many as N loops have room for, whole patterns of blocks; layers behind the last loop share
    nothing. The distance of every matrix from the shared one is told, and what is left of it beside the low-rank term.
    Tensors go through memory a few at a time; DST appears when it is complete, or not at all.
    """
    from griffinlm.checkpoint import open_checkpoint
    from griffinlm.loading import find_model
    from griffinlm.recursive import Recursion, write_recursive

    recursion = Recursion(loops, init, rank, tie, low_rank, seed)  # pyright: ignore[reportArgumentType]  (checked there)
    checkpoint = open_checkpoint(find_model(source))
    reports = write_recursive(checkpoint, recursion, destination, dtype)
    before, config = checkpoint.config, open_checkpoint(destination).config
    if as_json:
        print_json(
            {
                "path": destination,
                **recursion.to_dict(),
                "layers": config.num_layers,
                "shared_layers": config.num_shared_layers,
                "parameters_before": before.num_parameters,
                "parameters": config.num_parameters,
                "not_embedding_before": before.num_parameters - before.num_embedding_parameters,
                "not_embedding": config.num_parameters - config.num_embedding_parameters,
                "matrices": [report._asdict() for report in reports],
            }
        )
        return
    print_table(["parameter", "shared", "rank", "distance", "relative error"], [_row(report) for report in reports])
    print(
        f"\n{destination}: {config.num_shared_layers} layers in {loops} loops, "
        f"{config.num_layers - config.num_looped_layers} layers of their own, "
        f"{config.num_parameters:,} parameters of {before.num_parameters:,}"
    )


def _row(report: "MatrixReport") -> list[str]:
    return [
        report.parameter,
        report.shared.rsplit(".", 1)[0],
        str(report.rank),
        f"{report.distance:.4f}",
        f"{report.relative_error:.4f}",
    ]
