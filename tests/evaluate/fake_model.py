"""A LanguageModel whose next token is a function of all tokens before it, kept in the state's keys."""

import dataclasses
from collections.abc import Callable

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.language_model import LanguageModel
from griffinlm.state import state_layout

NextLogits = Callable[[list[int]], np.ndarray]
"""From the tokens read to the logits [vocab] of the next."""


class FakeExecutor:
    def __init__(self, engine, num_slots, capacity):
        self.engine, self.num_slots, self.capacity = engine, num_slots, capacity
        self.read = [[] for _ in range(num_slots)]

    def prefill(self, slots, tokens, positions, logits):
        out = np.zeros((*tokens.shape, self.engine.config.vocab_size), np.float32)
        last = np.zeros((len(tokens), 1, self.engine.config.vocab_size), np.float32)
        for row, slot in enumerate(slots):
            for column, token in enumerate(tokens[row].tolist()):
                if positions is not None and positions[row, column] < 0:
                    continue
                assert positions is None or positions[row, column] == len(self.read[slot])
                self.read[slot].append(token)
                if logits == "all":
                    out[row, column] = self.engine.next_logits(self.read[slot])
            if logits == "last":
                last[row, 0] = self.engine.next_logits(self.read[slot])
        return {"all": out, "last": last, "none": None}[logits]

    def export_state(self, slot):
        layout = state_layout(self.engine.config, 1, self.capacity, "float32", "float32")
        arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
        arrays["num_tokens"][0], arrays["pending"][0] = len(self.read[slot]), -1
        keys = next(array for name, array in arrays.items() if name.endswith(".keys"))
        keys[0, : len(self.read[slot]), 0] = self.read[slot]
        return arrays

    def import_state(self, slot, arrays):
        keys = next(array for name, array in arrays.items() if name.endswith(".keys"))
        self.read[slot] = keys[0, : int(arrays["num_tokens"][0]), 0].astype(int).tolist()


@dataclasses.dataclass
class FakeEngine:
    config: ModelConfig
    next_logits: NextLogits
    precision: str = "float32"
    window_dtype: str = "float32"

    def executor(self, num_slots, capacity=None):
        return FakeExecutor(self, num_slots, capacity)


def fake_model(vocab_size, next_logits, tokenizer=None) -> LanguageModel:
    config = dataclasses.replace(ModelConfig.preset("tiny-gemma"), vocab_size=vocab_size)
    return LanguageModel(FakeEngine(config, next_logits), tokenizer, lambda: "fake")
