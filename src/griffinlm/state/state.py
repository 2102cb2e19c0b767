"""State: everything a model remembers of its rows, as named arrays in a fixed number of bytes. Needs no engine."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from griffinlm.state.identity import Identity, StateError, StateOwner
from griffinlm.state.layout import check_layout
from griffinlm.state.sealed import checksum, read_whole, seal, unseal, write_whole

STATE_FILE = "state file"


class State:
    """What one or several conversations are to a model, after the tokens it has read.

    `num_tokens` [rows] counts the tokens of each row's document. `pending` [rows] is the last sampled token, which the
    model has not read yet, or -1: it is part of the conversation, and generate, stream and read consume it first.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], identity: Identity) -> None:
        self._arrays = dict(arrays)
        self.identity = identity

    @property
    def rows(self) -> int:
        return len(self.num_tokens)

    @property
    def num_tokens(self) -> np.ndarray:
        return self._arrays["num_tokens"]

    @property
    def pending(self) -> np.ndarray:
        return self._arrays["pending"]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; the same at every length of the conversation."""
        return sum(array.nbytes for array in self._arrays.values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, not copied; each has a leading row axis."""
        return dict(self._arrays)

    def copy(self) -> "State":
        return State({name: array.copy() for name, array in self._arrays.items()}, self.identity)

    def row(self, index: int) -> "State":
        """One row, as a copy that lives on its own."""
        return State({name: array[index : index + 1].copy() for name, array in self._arrays.items()}, self.identity)

    def with_pending(self, tokens: Sequence[int]) -> "State":
        """The same state with other pending tokens, one a row; -1 is none.

        Raises:
            StateError: there are not as many tokens as rows.
        """
        if len(tokens) != self.rows:
            raise StateError(f"there are {len(tokens)} pending tokens; the state has {self.rows} rows")
        return State({**self._arrays, "pending": np.asarray(tokens, np.int64)}, self.identity)

    @staticmethod
    def stack(states: Sequence["State"]) -> "State":
        """Several states of one model, with or without an adapter alike, as the rows of one.

        Raises:
            StateError: there are none, or their models, adapters or capacities differ.
        """
        if not states:
            raise StateError("there are no states to stack; at least one must be given")
        names = states[0]._arrays
        shapes = [{name: array.shape[1:] for name, array in state._arrays.items()} for state in states]
        for index, state in enumerate(states):
            states[0].identity.require_same(state.identity, f"beside state 0, state {index}")
            if shapes[index] != shapes[0]:
                raise StateError(f"state {index} has another capacity than state 0")
        return State({n: np.concatenate([s._arrays[n] for s in states]) for n in names}, states[0].identity)

    def digest(self) -> str:
        """SHA-256 of the arrays and of the fingerprint that they belong to."""
        return checksum(self._arrays, dataclasses.asdict(self.identity.fingerprint))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file with fingerprint and checksum, whole or not at all, readable by its owner alone.

        Raises:
            StateError: the file cannot be written; nothing is left behind.
        """
        write_whole(path, seal(self._arrays, self.identity), STATE_FILE)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: StateOwner) -> "State":
        """Reads a state that `save` wrote for the same model.

        Raises:
            StateError: there is no such file, it is damaged, no state at all, or belongs to another model.
        """
        what = f"{STATE_FILE} {path}"
        sealed = unseal(read_whole(path, STATE_FILE), STATE_FILE, str(path))
        sealed.require_of(model, what)
        check_layout(sealed.arrays, model, what)
        return cls(sealed.arrays, model.identity)
