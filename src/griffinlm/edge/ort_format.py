"""Graphs in ONNX Runtime's own format, which its reduced builds read."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.tools import convert_onnx_models_to_ort as tool

from griffinlm.checkpoint import CheckpointError
from griffinlm.edge.portable import GRAPH_FILE, WEIGHTS_FILE
from griffinlm.errors import in_one_line

OPERATORS_FILE = "required_operators.config"
LARGEST_BYTES = 2_000_000_000
"""What a file with 32-bit offsets holds, less some room for the graph."""


def convert_to_ort_format(folder: Path, name: str) -> None:
    """Turns the portable graph in `folder` into one file of that name, and lists its operators in `OPERATORS_FILE`.

    The two files of the portable graph are removed. Only those optimisations are applied that hold on every processor.

    Raises:
        CheckpointError: ONNX Runtime cannot convert the graph.
    """
    with tempfile.TemporaryDirectory(prefix="griffinlm-") as place, _quiet():
        try:
            tool.convert_onnx_models_to_ort(
                folder / GRAPH_FILE,
                output_dir=Path(place),
                optimization_styles=[tool.OptimizationStyle.Fixed],
                target_platform="arm",
            )
        except Exception as error:  # the tool raises nothing narrower
            raise CheckpointError(f"ONNX Runtime cannot write the model in ORT format: {in_one_line(error)}") from error
        made = Path(place) / Path(GRAPH_FILE).with_suffix(".ort").name
        operators = next(Path(place).glob("*required_operators.config"))
        (folder / name).write_bytes(made.read_bytes())
        lines = operators.read_text(encoding="utf-8").splitlines(keepends=True)
        # The first lines name the folder that the tool was run in.
        (folder / OPERATORS_FILE).write_text("".join(x for x in lines if not x.startswith("#")), encoding="utf-8")
    for file in (GRAPH_FILE, WEIGHTS_FILE):
        (folder / file).unlink()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the tool tells of its progress from standard output and from the log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
