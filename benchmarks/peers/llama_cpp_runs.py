"""Times llama.cpp on one GGUF file: prefill, decoding at positions, decoding several rows together.

Run as `python -m peers.llama_cpp_runs FILE JSON`; needs numpy and llama_cpp. Prints one JSON object a line. Sampling is
left out and flash attention is tried off and on, so that the figures are the best that llama.cpp can do.
"""

import ctypes
import json
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

from .settings import Settings, measured

PADDING = 256
"""llama.cpp rounds contexts and the cells that attention reads to this."""


class Context:
    """A llama.cpp context, its memory and a batch to fill. Sequence 0 is the one that is measured."""

    def __init__(
        self, model: Any, settings: Settings, num_tokens: int, num_sequences: int, flash: bool, unified: bool
    ) -> None:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = -(-num_tokens // PADDING) * PADDING
        parameters.n_batch = parameters.n_ubatch = max(settings.prefill_tokens, num_sequences)
        parameters.n_seq_max = num_sequences
        parameters.n_threads = parameters.n_threads_batch = settings.threads
        parameters.flash_attn_type = int(flash)
        parameters.kv_unified = unified
        parameters.no_perf = True
        self.pointer: Any = llama_cpp.llama_init_from_model(model, parameters)
        if not self.pointer:
            raise RuntimeError("llama.cpp made no context; there may be too little memory")
        self.memory: Any = llama_cpp.llama_get_memory(self.pointer)
        self.batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.random = np.random.default_rng(0)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.pointer)

    def compute(self, sequences: list[int], positions: list[int], logits: list[bool]) -> float:
        """Feeds one random token per entry; gives the milliseconds until the last entry's logits are there."""
        batch, tokens = self.batch, self.random.integers(0, self.vocab_size, len(sequences))
        batch.n_tokens = len(sequences)
        for index, (sequence, position, wanted) in enumerate(zip(sequences, positions, logits, strict=True)):
            batch.token[index], batch.pos[index], batch.logits[index] = int(tokens[index]), position, wanted
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self.pointer, batch)
        if status != 0:
            raise RuntimeError(f"llama_decode gave status {status}")
        first_logit = llama_cpp.llama_get_logits_ith(self.pointer, len(sequences) - 1)[0]
        milliseconds = 1e3 * (time.perf_counter() - start)
        if not math.isfinite(first_logit):
            raise RuntimeError(f"llama.cpp gave the logit {first_logit}")
        return milliseconds

    def prefill(self, num_tokens: int) -> float:
        """Milliseconds for tokens 0..num_tokens-1 of an empty sequence 0."""
        self.forget(0, 0)
        return self.compute([0] * num_tokens, list(range(num_tokens)), [False] * (num_tokens - 1) + [True])

    def decode(self, position: int) -> float:
        """Milliseconds for one token."""
        return self.compute([0], [position], [True])

    def forget(self, sequence: int, start: int) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def state(self) -> Any:
        """What llama.cpp gives to save sequence 0."""
        size = llama_cpp.llama_state_seq_get_size(self.pointer, 0)
        state = (ctypes.c_uint8 * size)()
        llama_cpp.llama_state_seq_get_data(self.pointer, state, size, 0)
        return state

    def fill(self, state: Any, num_tokens: int, length: int) -> None:
        """Makes sequence 0 `length` tokens long from copies of a state of `num_tokens`, moved to later positions.

        The cache then holds real keys and values, rotated by llama.cpp itself; only computing them is saved.
        """
        self.forget(0, 0)
        for start in range(0, length, num_tokens):
            if not llama_cpp.llama_state_seq_set_data(self.pointer, state, len(state), 1):
                raise RuntimeError(f"llama.cpp did not take back the state of {num_tokens} tokens")
            llama_cpp.llama_memory_seq_add(self.memory, 1, 0, -1, start)
            llama_cpp.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            self.forget(1, 0)
        self.forget(0, length)
        last = llama_cpp.llama_memory_seq_pos_max(self.memory, 0)
        if last != length - 1:
            raise RuntimeError(f"llama.cpp's memory ends at position {last}; it should end at {length - 1}")


def measure_sequence(model: Any, settings: Settings, flash: bool) -> Iterator[dict[str, Any]]:
    """Prefill of an empty sequence, then decoding at each position."""
    num_prefill = settings.prefill_tokens
    num_tokens = max(settings.positions) + settings.decode_tokens + num_prefill
    with Context(model, settings, num_tokens, 2, flash, True) as context:
        context.prefill(num_prefill)
        times = [context.prefill(num_prefill) for _ in range(settings.prefill_repeats)]
        yield measured("prefill", times, tokens=num_prefill, flash_attention=flash)
        state = context.state()
        for position in settings.positions:
            context.fill(state, num_prefill, position)
            times = [context.decode(position + step) for step in range(settings.decode_tokens + 1)][1:]
            yield measured("decode", times, tokens=1, position=position, flash_attention=flash)


def measure_batch(model: Any, settings: Settings, flash: bool) -> Iterator[dict[str, Any]]:
    """Decoding of several sequences in one call, each with a cache of its own as is llama.cpp's default."""
    rows = settings.batch_rows
    if not rows:
        return
    with Context(model, settings, rows * PADDING, rows, flash, False) as context:
        steps = range(settings.decode_tokens + 1)
        times = [context.compute(list(range(rows)), [step] * rows, [True] * rows) for step in steps][1:]
        yield measured("batch", times, tokens=rows, rows=rows, flash_attention=flash)


def main() -> None:
    path, settings = sys.argv[1], Settings.parse(sys.argv[2])
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError(f"llama.cpp did not load {path}")
    # A recurrent model has no attention.
    for flash in (False,) if llama_cpp.llama_model_is_recurrent(model) else (False, True):
        for measure in (measure_sequence, measure_batch):
            for found in measure(model, settings, flash):
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
