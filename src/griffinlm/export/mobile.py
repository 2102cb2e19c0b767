"""A model for phones: ONNX Runtime's own format, what a reduced build must hold, and programs that call it."""

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.edge.ort_format import LARGEST_BYTES, convert_to_ort_format
from griffinlm.edge.portable import WEIGHTS_FILE, build_portable_graph, write_portable_graph
from griffinlm.export.description import ExportError, describe, open_exported

ORT_FILE = "model.ort"


def export_mobile(
    path_or_name: str, destination: Path, weights: str | None = None, window_dtype: str = "float32"
) -> dict[str, Any]:
    """Writes the model in ORT format, its description, the operators it needs, and examples for Android and iOS.

    Returns:
        The description of the model that lies beside it as `model.json`.

    Raises:
        GriffinError: the model cannot be opened or exported, is too large for the format, or `destination` is not free.
    """
    exported = open_exported(path_or_name, weights, window_dtype)
    description = {**describe(exported), "graph": ORT_FILE}
    with new_directory(destination) as folder:
        write_portable_graph(build_portable_graph(exported.checkpoint, window_dtype), folder)
        num_bytes = (folder / WEIGHTS_FILE).stat().st_size
        if num_bytes > LARGEST_BYTES:
            raise ExportError(
                f"the weights have {num_bytes:,} bytes; a file in ORT format holds at most {LARGEST_BYTES:,}",
                hint="--weights int4",
            )
        convert_to_ort_format(folder, ORT_FILE)
        (folder / "model.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
        source = exported.checkpoint.tokenizer_directory
        for path in () if source is None else sorted(source.glob("tokenizer*")):
            shutil.copyfile(path, folder / path.name)
        for file in (resources.files("griffinlm.export") / "mobile_examples").iterdir():
            if file.is_file():
                (folder / file.name).write_bytes(file.read_bytes())
    return description
