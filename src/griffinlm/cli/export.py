"""griffin export: a model for where there is no Python."""

from pathlib import Path
from typing import Annotated, Any

import typer

from griffinlm.cli.options import AsJson, Weights
from griffinlm.cli.output import print_json, print_table
from griffinlm.errors import GriffinError

TARGETS = ("web", "mobile")


class ExportOptionError(GriffinError):
    """Options that name no target, or that the target has no use for."""


def export(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="As in `griffin generate --model`.")],
    destination: Annotated[Path, typer.Argument(metavar="DIR", help="A directory that is not there yet.")],
    target: Annotated[
        str, typer.Option("--for", metavar="TARGET", help="web: a page of static files; mobile: a model for phones.")
    ],
    weights: Weights = None,
    window_dtype: Annotated[
        str,
        typer.Option(
            "--window-dtype", metavar="TYPE", help="Of attention's part of the state: float32, float16, int8."
        ),
    ] = "float32",
    webgpu: Annotated[
        bool, typer.Option("--webgpu", help="Ship the WebGPU runtime too; the page takes it where there is a GPU.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a page that runs the model, or files for phones.

    The page is static, asks no other host, and works offline after its first load. It reads and writes the files of
    `griffin chat`. npm must be installed: it fetches ONNX Runtime for the page.
    """
    if target not in TARGETS:
        raise ExportOptionError(f"--for is {target!r}; allowed are {', '.join(TARGETS)}")
    if webgpu and target != "web":
        raise ExportOptionError(f"--webgpu is given; only --for web has a use for it, not --for {target}")
    from griffinlm.export import export_mobile, export_web

    description: dict[str, Any]
    if target == "web":
        description = export_web(source, destination, weights, window_dtype, webgpu)
    else:
        description = export_mobile(source, destination, weights, window_dtype)
    files = sorted(path for path in destination.rglob("*") if path.is_file())
    sizes = {path.relative_to(destination).as_posix(): path.stat().st_size for path in files}
    if as_json:
        print_json({"path": str(destination), "for": target, "files": sizes, "state_bytes": description["state_bytes"]})
        return
    print_table(["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes.items()])
    print(f"\n{destination}: {sum(sizes.values()):,} bytes; a conversation's state has {description['state_bytes']:,}")
    if target == "web":
        print(f"Any web server can give it out, for instance: python -m http.server --directory {destination}")
