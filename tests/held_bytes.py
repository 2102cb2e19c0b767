"""How many bytes of arrays an object holds."""

from typing import Any

import numpy as np
import torch


def held_bytes(*held: Any) -> int:
    """Bytes of all numpy arrays and tensors in dicts, sequences and NamedTuples, whole where views are held."""
    found: dict[int, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, np.ndarray):
            whole = value
            while isinstance(whole.base, np.ndarray):
                whole = whole.base
            found[id(whole)] = whole.nbytes
        elif isinstance(value, dict):
            for one in value.values():
                look(one)
        elif isinstance(value, (list, tuple)):
            for one in value:
                look(one)
        elif hasattr(value, "__dict__"):
            look(vars(value))

    look(list(held))
    return sum(found.values())
