"""Rows of the embedding, read from the weights where they lie."""

import numpy as np

from griffinlm.checkpoint import SCALES, Checkpoint
from griffinlm.quantization import FLOAT32, dequantize


class Embedding:
    """Gathers rows from the file that holds them, in whatever format they are; only the pages touched are in memory.

    The head multiplies with the same matrix, so it is stored once.
    """

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        config = checkpoint.config
        self._width, self._factor = config.width, np.float32(config.embedding_scale)
        quantization = checkpoint.quantization
        shape = config.parameter_shapes()[name]
        self._format = FLOAT32 if quantization is None else quantization.recipe.format_of(name, shape)
        stored = checkpoint.stored(name)
        self._weight = checkpoint.tensor(name) if stored is None else stored.mapped()
        scales = checkpoint.stored(name + SCALES) if self._format.is_quantized else None
        self._scales = None if scales is None else scales.mapped()

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """embedding[token] * embedding_scale, float32 [..., D], for ids of any shape."""
        ids = tokens.reshape(-1)
        values = self._weight[ids]
        if self._scales is not None:
            values = dequantize(values, self._scales[ids], self._format, self._width)
        values = values.astype(np.float32) * self._factor
        return values.reshape(*tokens.shape, self._width)
