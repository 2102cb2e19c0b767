"""What the examples for Android and iOS do, in Python: the same steps with the same names."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime


class CallerState(NamedTuple):
    """A state as the examples hold it; `num_tokens` is an array so that it can be written."""

    num_tokens: np.ndarray
    arrays: dict[str, np.ndarray]

    def copy(self) -> "CallerState":
        return CallerState(self.num_tokens.copy(), {name: array.copy() for name, array in self.arrays.items()})


class Caller:
    def __init__(self, folder: Path) -> None:
        self.description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / self.description["graph"], options)
        self.specs = self.description["state"]

    def new_state(self) -> CallerState:
        arrays = {spec["name"]: np.zeros(spec["shape"], spec["dtype"]) for spec in self.specs}
        return CallerState(np.zeros((), np.int64), arrays)

    def read(self, state: CallerState, tokens: list[int]) -> np.ndarray:
        size, logits = self.description["max_chunk_tokens"], np.zeros(0)
        for start in range(0, len(tokens), size):
            logits = self._call(state, tokens[start : start + size])
        return logits

    def best(self, logits: np.ndarray) -> int:
        return int(logits[: self.description["num_choices"]].argmax())

    def save(self, state: CallerState) -> bytes:
        arrays = [state.num_tokens, *(state.arrays[spec["name"]] for spec in self.specs)]
        return b"".join(array.tobytes() for array in arrays)

    def load(self, data: bytes) -> CallerState:
        state = self.new_state()
        state.num_tokens[...] = np.frombuffer(data, np.int64, 1)[0]
        start = 8
        for array in state.arrays.values():
            array[:] = np.frombuffer(data, array.dtype, array.size, start).reshape(array.shape)
            start += array.nbytes
        assert start == len(data)
        return state

    def _call(self, state: CallerState, tokens: list[int]) -> np.ndarray:
        positions = int(state.num_tokens) + np.arange(len(tokens))
        inputs = {
            "token_ids": np.asarray([tokens], np.int64),
            "positions": positions[None],
            "num_before": state.num_tokens[None],
            "logit_index": np.asarray([[0, len(tokens) - 1]], np.int64),
        }
        for spec in self.specs:
            inputs[spec["name"]] = self._input(spec, state)
        names = [*(spec["name"] + ".new" for spec in self.specs), "logits"]
        *new, logits = self.session.run(names, inputs)
        for spec, values in zip(self.specs, new, strict=True):
            _keep(spec, state, positions, values)
        state.num_tokens[...] += len(tokens)
        return logits[0]

    def _input(self, spec: dict, state: CallerState) -> np.ndarray:
        array = state.arrays[spec["name"]]
        if not spec["is_ring"]:
            return array
        step = self.description["ring_step_slots"]
        return array[:, : max(1, -(-int(state.num_tokens) // step)) * step]


def _keep(spec: dict, state: CallerState, positions: np.ndarray, values: np.ndarray) -> None:
    array = state.arrays[spec["name"]]
    if not spec["is_ring"]:
        array[:] = values
        return
    num_slots = spec["shape"][1]
    for index in range(max(0, len(positions) - num_slots), len(positions)):
        array[:, positions[index] % num_slots] = values[:, index]
