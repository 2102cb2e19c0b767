"""Small models on both engines, made once: the torch one runs in float32 what the onnx one holds in any format."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from small_models import PATTERNS, interesting_lengths, random_model
from tolerances import assert_agree

from griffinlm.checkpoint import Checkpoint, open_checkpoint, write_checkpoint, write_quantized
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig, RecursionConfig
from griffinlm.edge import executor as executor_module
from griffinlm.edge.engine import OnnxEngine, build_engine
from griffinlm.edge.executor import OnnxExecutor
from griffinlm.executor import LogitsChoice
from griffinlm.model.engine import TorchEngine, TorchExecutor
from griffinlm.model.engine import build_engine as build_torch_engine
from griffinlm.quantization import FLOAT32, RECIPES, Format, Recipe

CAPACITY = 200
"""Tokens that global attention keeps in these tests."""

NUM_SLOTS = 5

RECIPE_OF = {
    "float32": None,
    "int4": RECIPES["int4"],
    "int8": RECIPES["int8"],
    "int4-block32": Recipe(Format(4, 32)),
    "int8-block32": Recipe(Format(8, 32)),
    "mixed": Recipe(Format(4, 16), (("*.mlp.down.weight", Format(8)), ("*.mlp.up.weight", FLOAT32))),
}
VARIANTS = [
    ("float32", "float32"),
    ("float32", "float16"),
    ("float32", "int8"),
    ("int4", "float32"),
    ("int8", "float32"),
    ("mixed", "int8"),
]
"""Weights and window."""


def config_of(pattern: str, num_layers: int, **changes: Any) -> ModelConfig:
    """A model of a pattern of `small_models.PATTERNS` whose sizes are multiples of nothing."""
    kinds = set((PATTERNS[pattern] * num_layers)[:num_layers])
    window = 7 if "local_attention" in kinds else None
    config = ModelConfig(
        vocab_size=23,
        width=13,
        num_layers=num_layers,
        block_pattern=PATTERNS[pattern],
        mlp_hidden=17,
        recurrent=RecurrentConfig(width=15, num_gate_blocks=3) if "recurrent" in kinds else None,
        attention=AttentionConfig(num_heads=3, head_size=8, window_tokens=window) if kinds - {"recurrent"} else None,
        embedding_scale=3.0,
        logit_soft_cap=5.0,
    )
    return dataclasses.replace(config, **changes)


CONFIGS = {
    "Hawk": config_of("Hawk", 2),
    "Griffin": config_of("Griffin", 4),
    "attention first": config_of("attention first", 3, use_bias=False, logit_soft_cap=None),
    "attention only": config_of("attention only", 2),
    "Gemma": config_of("Gemma", 2, use_bias=False),
    "recurrent and global": config_of("recurrent and global", 3, embedding_scale=1.0),
    "recursive Griffin": config_of("Griffin", 7, recursion=RecursionConfig(num_loops=2, rank=2)),
    "skipping Griffin": config_of("Griffin", 7, recursion=RecursionConfig(num_loops=2, rank=2, skips=True)),
    "recursive Gemma": config_of("Gemma", 4, recursion=RecursionConfig(num_loops=2, rank=1, tie="all")),
}
BLOCKS = {
    "recurrent": config_of("Hawk", 1),
    "local attention": config_of("attention only", 1),
    "global attention": config_of("Gemma", 1),
}
LOCAL = tuple(name for name, config in CONFIGS.items() if not config.needs_capacity)


class Engines(NamedTuple):
    """One model's weights twice, and how far computations on them may lie apart."""

    checkpoint: Checkpoint
    onnx: OnnxEngine
    torch: TorchEngine
    weights: str
    """A key of `RECIPE_OF`."""

    @property
    def config(self) -> ModelConfig:
        return self.onnx.config

    @property
    def row(self) -> tuple[str, str, str]:
        """Of the table of tolerances, for two ways through the onnx engine."""
        if self.weights != "float32":
            return "model, int8 or int4", "float32", "onnx"
        window = self.onnx.window_dtype
        return "model" if window == "float32" else f"model, {window} window", "float32", "onnx"

    @property
    def row_against_torch(self) -> tuple[str, str, str]:
        is_rounded = self.weights != "float32" or self.onnx.window_dtype == "int8"
        return ("model, rounded activations", "float32", "onnx") if is_rounded else self.row

    def executor(self, num_slots: int = 1) -> OnnxExecutor:
        return self.onnx.executor(num_slots, CAPACITY if self.config.needs_capacity else None)

    def torch_executor(self, num_slots: int = 1) -> TorchExecutor:
        return self.torch.executor(num_slots, CAPACITY if self.config.needs_capacity else None)

    def tokens(self, num_rows: int, num_tokens: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, self.config.vocab_size, (num_rows, num_tokens))


@functools.cache
def engines(config: ModelConfig, weights: str = "float32", window_dtype: str = "float32", seed: int = 0) -> Engines:
    """Both engines on random weights, nothing of which is zero; the torch one has the values that the onnx one holds.

    The torch engine has no int8 window; beside such an engine its window is float32.
    """
    folder = tempfile.TemporaryDirectory(prefix="edge-")
    checkpoint = write_model(config, Path(folder.name), weights, seed)
    checkpoint.keep_alive = folder
    torch_window = "float32" if window_dtype == "int8" else window_dtype
    reference = build_torch_engine(config, checkpoint.tensor, "float32", torch_window, "cpu")
    return Engines(checkpoint, build_engine(checkpoint, window_dtype, 1), reference, weights)


def write_model(
    config: ModelConfig, folder: Path, weights: str = "float32", seed: int = 0, shard_bytes: int = 1 << 30
) -> Checkpoint:
    """A random model in a directory under `folder`."""
    tensors = {name: tensor.detach().numpy() for name, tensor in random_model(config, seed).named_parameters()}
    write_checkpoint(config, tensors.items(), folder / "model", "griffinlm", shard_bytes=shard_bytes)
    original, recipe = open_checkpoint(folder / "model"), RECIPE_OF[weights]
    if recipe is None:
        return original
    write_quantized(original, recipe, folder / "quantized", shard_bytes=shard_bytes)
    return open_checkpoint(folder / "quantized")


def read(executor: Any, slots: Sequence[int], tokens: np.ndarray, chunks: Sequence[int]) -> np.ndarray:
    """Logits of all tokens [rows, tokens, vocab], read in chunks of these lengths; those of one token by `step`."""
    parts, start = [], 0
    for length in chunks:
        chunk = tokens[:, start : start + length]
        if length == 1:
            parts.append(executor.step(slots, chunk[:, 0].tolist())[:, None])
        else:
            parts.append(executor.prefill(slots, chunk, None, "all"))
        start += length
    assert start == tokens.shape[1]
    return np.concatenate(parts, axis=1)


def states(executor: Any, slots: Sequence[int]) -> list[dict[str, np.ndarray]]:
    return [executor.export_state(slot) for slot in slots]


def is_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two states are equal bit by bit."""
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def assert_same_state(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], row: tuple[str, str, str]) -> None:
    """The states agree; int8 rings of either are compared by the numbers that they stand for."""
    assert found["num_tokens"].tolist() == expected["num_tokens"].tolist()
    found, expected = _numbers(found), _numbers(expected)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        is_half = values.dtype == np.float16
        assert_agree(found[name], values, *(("window", "float16", "onnx") if is_half else row), name)


def _numbers(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for name, values in state.items():
        scales = state.get(f"{name[:-1]}_scales")
        if name.endswith("_scales"):
            continue
        out[name] = values if scales is None else values * scales[..., None]
    return out


@st.composite
def cuts(draw: st.DrawFn, config: ModelConfig, num_tokens: int) -> list[int]:
    """Lengths of chunks that add up to `num_tokens`."""
    chunks, left = [], num_tokens
    while left:
        chunks.append(min(left, draw(interesting_lengths(config))))
        left -= chunks[-1]
    return chunks


def to_positions(padding: np.ndarray, num_before: Sequence[int], starts: np.ndarray) -> np.ndarray:
    """[B, T] positions of tokens that continue `num_before` around the padding; where `starts` holds one begins."""
    positions = np.full(padding.shape, -1)
    for row, place in enumerate(num_before):
        for t in np.flatnonzero(~padding[row]):
            place = 0 if starts[row, t] else place
            positions[row, t] = place
            place += 1
    return positions


@contextlib.contextmanager
def small_calls(num_tokens: int) -> Iterator[None]:
    """Calls of the graph take this many tokens of a row, so that a short prompt meets every border."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor_module, "MAX_CHUNK_TOKENS", num_tokens)
        yield


@st.composite
def calls(draw: st.DrawFn, pair: Engines, num_rows: int) -> list[tuple[np.ndarray, np.ndarray, LogitsChoice]]:
    """Tokens, positions and choice of logits of prefills one after another: padding and new documents anywhere."""
    num_before, found = [0] * num_rows, []
    for seed in range(draw(st.integers(1, 3))):
        tokens = pair.tokens(num_rows, draw(interesting_lengths(pair.config)), seed)
        share = draw(st.sampled_from([0.0, 0.3, 0.9]))
        random = np.random.default_rng(draw(st.integers(0, 2**31)))
        padding = random.random(tokens.shape) < share
        starts = random.random(tokens.shape) < draw(st.sampled_from([0.0, 0.2]))
        positions = to_positions(padding, num_before, starts)
        for row in np.flatnonzero(~padding.all(axis=1)):
            num_before[row] = int(positions[row][~padding[row]][-1]) + 1
        found.append((tokens, positions, draw(st.sampled_from(["all", "last", "none"]))))
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """Engines, the slots to read into, in any order and with gaps, and tokens for each of them."""

    engines: Engines
    slots: list[int]
    tokens: np.ndarray
    """[rows, tokens]."""

    def executor(self) -> OnnxExecutor:
        return self.engines.executor(NUM_SLOTS)

    def assert_agree(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert_agree(found, expected, *self.engines.row)

    def assert_same_states(self, found: Any, expected: Any) -> None:
        for slot in self.slots:
            assert_same_state(found.export_state(slot), expected.export_state(slot), self.engines.row)


@st.composite
def cases(draw: st.DrawFn, num_rows: tuple[int, int] = (1, 3)) -> Case:
    """Models of every pattern with weights and windows of every type."""
    config = CONFIGS[draw(st.sampled_from(sorted(CONFIGS)))]
    weights, window_dtype = draw(st.sampled_from(VARIANTS))
    pair = engines(config, weights, window_dtype)
    slots = list(draw(st.permutations(range(NUM_SLOTS))))[: draw(st.integers(*num_rows))]
    num_tokens = draw(interesting_lengths(config))
    return Case(pair, slots, pair.tokens(len(slots), num_tokens, draw(st.integers(0, 2**31))))
