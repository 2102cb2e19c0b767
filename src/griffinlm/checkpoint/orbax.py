"""DeepMind's Flax checkpoints, as orbax writes them, read by tensorstore and without jax.

Every leaf of the tree is one zarr array; its key is the path of the leaf joined by dots. The arrays are directories, or
records of one OCDBT database. Which dots come from inside a name (`blocks.0`) is not stored, and not needed.
"""

from pathlib import Path
from typing import Any

import numpy as np

from griffinlm.checkpoint.errors import CheckpointError, reading
from griffinlm.checkpoint.tensor_source import TensorInfo

PREFIX = "params."
DATABASE_FILE = "manifest.ocdbt"
ITEM_DIRECTORY = "default"
"""Where orbax's checkpoint manager puts the one item of a step."""

_SIGNS = (DATABASE_FILE, "_METADATA")
_DRIVERS = {".zarray": "zarr", "zarr.json": "zarr3"}


def orbax_root(directory: Path) -> Path | None:
    """The directory itself or its `default`, whichever holds an orbax checkpoint; None if neither does."""
    for root in (directory, directory / ITEM_DIRECTORY):
        if any((root / name).is_file() for name in _SIGNS) or any(any(root.glob(f"*/{file}")) for file in _DRIVERS):
            return root
    return None


class OrbaxDirectory:
    """The arrays of an orbax checkpoint, named as DeepMind's Flax code names them, read one by one."""

    def __init__(self, root: Path) -> None:
        """Opens every array, not yet reading its values.

        Raises:
            CheckpointError: tensorstore is not installed, or a file is damaged.
        """
        self._root = root
        tensorstore = _tensorstore()
        with reading(root):
            self._arrays = _open_arrays(tensorstore, root)
            self.tensors = {
                name: TensorInfo(array.dtype.name, tuple(array.shape)) for name, array in self._arrays.items()
            }

    def read(self, name: str) -> np.ndarray:
        """The values of one tensor; see `TensorSource.read`."""
        with reading(f"{name} of {self._root}"):
            return self._arrays[name].read().result()


def _open_arrays(tensorstore: Any, root: Path) -> dict[str, Any]:
    base = {"driver": "file", "path": f"{root.absolute()}/"}
    store = {"driver": "ocdbt", "base": base} if (root / DATABASE_FILE).is_file() else base
    keys = [key.decode() for key in tensorstore.KvStore.open(store).result().list().result()]
    opening = {}
    for key in keys:
        path, _, file = key.rpartition("/")
        if path and file in _DRIVERS:
            spec = {
                "driver": _DRIVERS[file],
                # For an OCDBT database, `path` is the key in it.
                "kvstore": {**store, "path": f"{store.get('path', '')}{path}/"},
                # A lost chunk is damage, not a block of zeros.
                "fill_missing_data_reads": False,
            }
            opening[path.replace("/", ".")] = tensorstore.open(spec, open=True, read=True)
    arrays = {name: future.result() for name, future in opening.items()}
    if arrays and all(name.startswith(PREFIX) for name in arrays):
        return {name.removeprefix(PREFIX): array for name, array in arrays.items()}
    return arrays


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError:
        raise CheckpointError(
            "Flax checkpoints need tensorstore, which is not installed", hint="pip install griffinlm[orbax]"
        ) from None
    return tensorstore
