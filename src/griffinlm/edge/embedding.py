"""Rows of the embedding, read from the weights where they lie."""

import threading
import weakref
from collections.abc import Callable

import numpy as np

from griffinlm.checkpoint import SCALES, Checkpoint, CheckpointError, StoredTensor
from griffinlm.checkpoint.tensor_source import element_type
from griffinlm.quantization import FLOAT32, dequantize


class Embedding:
    """Gathers rows from the file that holds them, in whatever format they are; only these are in memory.

    The head multiplies with the same matrix, so it is stored once.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        config = checkpoint.config
        self._width, self._factor = config.width, np.float32(config.embedding_scale)
        quantization = checkpoint.quantization
        shape = config.parameter_shapes()[name]
        self._format = FLOAT32 if quantization is None else quantization.recipe.format_of(name, shape)
        stored = checkpoint.stored(name)
        self._weight: Callable[[np.ndarray], np.ndarray] = (
            checkpoint.tensor(name).__getitem__ if stored is None else _StoredRows(stored)
        )
        scales = checkpoint.stored(name + SCALES) if self._format.is_quantized else None
        self._scales = None if scales is None else _StoredRows(scales)

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """embedding[token] * embedding_scale, float32 [..., D], for ids of any shape.

        Raises:
            CheckpointError: the file was cut short since it was opened.
        """
        ids = tokens.reshape(-1)
        values = self._weight(ids)
        if self._scales is not None:
            values = dequantize(values, self._scales(ids), self._format, self._width)
        values = values.astype(np.float32) * self._factor
        return values.reshape(*tokens.shape, self._width)


class _StoredRows:
    """Rows of a tensor, read from its file one by one.

    Not by a mapping: the system brings up to 2 MB into memory for a row of it, so a prompt would bring all of it.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self._stored, self._row_bytes = stored, stored.num_bytes // stored.shape[0]
        # Opened once: a model in use may be replaced by renaming, and goes on with the file it began with.
        self._file = stored.file.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """The rows of these numbers, [len(ids), ...]."""
        rows = np.empty((len(ids), self._row_bytes), np.uint8)
        with self._lock:
            for row, index in zip(rows, ids.tolist(), strict=True):
                self._file.seek(self._stored.offset + index * self._row_bytes)
                if self._file.readinto(row.data) != self._row_bytes:
                    raise CheckpointError(f"{self._stored.file} is shorter than when it was opened")
        return rows.view(element_type(self._stored.dtype)).reshape(len(ids), *self._stored.shape[1:])
