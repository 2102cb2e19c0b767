"""A model with adapters beside its weights = models with the adapters in their weights, on both engines.

- a row with an adapter = the row on merged weights, W + scaling B A, whatever matrices the adapter has;
- rows with different adapters, or none, in one call = each in a call of its own;
- a row without an adapter = the row on an engine without adapters, bit by bit, as is B = 0 to the tolerance of sums;
- an adapter belongs to a slot until it is released, and to no state.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
import pytest
from adapters import ALPHA, Factors, merged, random_factors, write_adapter
from edge.models import CAPACITY, CONFIGS, NUM_SLOTS, Engines, cuts, engines, is_same, read
from hypothesis import given
from hypothesis import strategies as st
from recursive_models import unrolled
from tolerances import assert_agree

from griffinlm.checkpoint.adapter import read_low_rank
from griffinlm.config import ModelConfig
from griffinlm.edge.engine import build_engine
from griffinlm.executor import ExecutorError
from griffinlm.model.engine import build_engine as build_torch_engine

NAMES = (None, "all", "few", "state")
"""Adapters of every engine here: one has all matrices, one a few of another rank, one is a tuned state: none."""
RANKS = {"all": 2, "few": 3}
FEW = (".mlp.up", ".query", ".input_gate", ".linear_out")


class Adapted(NamedTuple):
    """One model's engines without adapters, with them, and on merged weights."""

    plain: Engines
    engine: dict[str, Any]
    """With adapters, by "onnx" and "torch"."""
    merged: dict[str, Any]
    """In torch, by adapter."""

    def executor(self, engine: Any) -> Any:
        return engine.executor(NUM_SLOTS, CAPACITY if self.plain.config.needs_capacity else None)

    def run(self, engine: Any, slots: list[int], names: list[str | None], tokens: np.ndarray, chunks: list[int]) -> Any:
        executor = self.executor(engine)
        for slot, name in zip(slots, names, strict=True):
            executor.use_adapter(slot, name)
        return read(executor, slots, tokens, chunks)

    def expected(self, name: str | None, tokens: np.ndarray) -> np.ndarray:
        """Logits of one row on merged weights."""
        model = self.merged.get(name or "", self.plain.torch)
        return read(self.executor(model), [0], tokens, [tokens.shape[1]])


def factors_of(config: ModelConfig, **changes: Any) -> dict[str, dict[str, Factors]]:
    return {
        "all": random_factors(config, 1, RANKS["all"], **changes),
        "few": random_factors(config, 2, RANKS["few"], FEW, **changes),
    }


@functools.cache
def adapted(name: str) -> Adapted:
    plain = engines(CONFIGS[name])
    folder = plain.checkpoint.path.parent
    factors = factors_of(plain.config)
    terms: dict[str, Any] = {
        one: read_low_rank(write_adapter(folder / one, plain.config, factors[one], RANKS[one]), plain.config).terms
        for one in factors
    }
    terms["state"] = {}
    read_tensor = plain.checkpoint.tensor
    config, read_plain = unrolled(plain.config, read_tensor)
    built = {
        "onnx": build_engine(plain.checkpoint, "float32", 1, terms),
        "torch": build_torch_engine(plain.config, read_tensor, "float32", "float32", "cpu", terms),
    }
    models = {
        one: build_torch_engine(
            config, merged(read_plain, factors[one], ALPHA / RANKS[one]), "float32", "float32", "cpu"
        )
        for one in factors
    }
    return Adapted(plain, built, models)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Adapted, str, list[int], list[str | None], np.ndarray]:
    """A model, an engine, slots in any order and with gaps, an adapter and tokens for each."""
    case = adapted(draw(st.sampled_from(sorted(CONFIGS))))
    slots = list(draw(st.permutations(range(NUM_SLOTS))))[: draw(st.integers(1, NUM_SLOTS))]
    names = [draw(st.sampled_from(NAMES)) for _ in slots]
    tokens = case.plain.tokens(len(slots), draw(st.integers(1, 12)), draw(st.integers(0, 2**31)))
    return case, draw(st.sampled_from(["onnx", "torch"])), slots, names, tokens


def assert_same(found: np.ndarray, expected: np.ndarray, engine: str) -> None:
    assert_agree(found, expected, "model, adapter", "float32", engine)


@given(batches(), st.data())
def test_mixed_batch_equals_each_row_on_merged_weights(batch, data):
    """In any chunks, single tokens among them."""
    case, engine, slots, names, tokens = batch
    chunks = data.draw(cuts(case.plain.config, tokens.shape[1]))
    found = case.run(case.engine[engine], slots, names, tokens, chunks)
    for row, name in enumerate(names):
        assert_same(found[[row]], case.expected(name, tokens[[row]]), engine)


@given(batches())
def test_rows_without_an_adapter_have_the_bits_of_an_engine_without(batch):
    case, engine, slots, names, tokens = batch
    plain = {"onnx": case.plain.onnx, "torch": case.plain.torch}[engine]
    chunks = [tokens.shape[1] - 1, 1] if tokens.shape[1] > 1 else [1]
    found = case.run(case.engine[engine], slots, names, tokens, chunks)
    expected = case.run(plain, slots, [None] * len(slots), tokens, chunks)
    for row, name in enumerate(names):
        if name in (None, "state"):
            np.testing.assert_array_equal(found[row], expected[row])


@given(batches(), st.data())
def test_adapters_of_other_rows_change_a_row_by_no_more_than_sums_do(batch, data):
    case, engine, slots, names, tokens = batch
    others = [names[0], *(data.draw(st.sampled_from(NAMES)) for _ in slots[1:])]
    chunks = [tokens.shape[1]]
    one, other = (case.run(case.engine[engine], slots, chosen, tokens, chunks) for chosen in (names, others))
    assert_agree(one[0], other[0], "model", "float32", engine)


@given(batches())
def test_padding_beside_an_adapter_changes_nothing(batch):
    case, engine, slots, names, tokens = batch
    executor = case.executor(case.engine[engine])
    for slot, name in zip(slots, names, strict=True):
        executor.use_adapter(slot, name)
    positions = np.tile(np.arange(tokens.shape[1] + 2) - 2, (len(slots), 1))
    positions[positions < 0] = -1
    padded = np.concatenate([np.zeros((len(slots), 2), np.int64), tokens], axis=1)
    found = executor.prefill(slots, padded, positions, "all")[:, 2:]
    for row, name in enumerate(names):
        assert_same(found[[row]], case.expected(name, tokens[[row]]), engine)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_release_takes_the_adapter_from_a_slot_and_import_does_not(engine):
    case = adapted("Griffin")
    tokens = case.plain.tokens(1, 6)
    executor, base = (case.executor(case.engine[engine]) for _ in range(2))
    executor.use_adapter(2, "all")
    state = executor.export_state(2)
    logits = executor.prefill([2], tokens, None, "all")
    executor.import_state(2, state)
    np.testing.assert_array_equal(executor.prefill([2], tokens, None, "all"), logits)
    executor.release(2)
    expected = base.prefill([2], tokens, None, "all")
    np.testing.assert_array_equal(executor.prefill([2], tokens, None, "all"), expected)
    assert not np.array_equal(logits, expected)
    assert is_same(executor.export_state(2), base.export_state(2))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_adapter_may_change_between_calls_and_steps_see_it_at_once(engine):
    """Steps of equal shapes use the same arrays again."""
    case = adapted("Griffin")
    executor, tokens = case.executor(case.engine[engine]), [3, 7]
    empty = [executor.export_state(slot) for slot in (0, 1)]
    for names in (("all", None), (None, "all"), ("few", "all"), ("all", "few"), ("all", "all"), (None, None)):
        for slot, name in enumerate(names):
            executor.import_state(slot, empty[slot])
            executor.use_adapter(slot, name)
        found = executor.step([0, 1], tokens)
        for row, name in enumerate(names):
            assert_same(found[row], case.expected(name, np.array([[tokens[row]]]))[0, 0], engine)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_unknown_adapter_is_refused_and_those_loaded_are_named(engine):
    executor = adapted("Griffin").executor(adapted("Griffin").engine[engine])
    with pytest.raises(ExecutorError, match="there is no adapter 'alll'; loaded are all, few, state"):
        executor.use_adapter(0, "alll")
    with pytest.raises(ExecutorError, match="there is no adapter 'all'; loaded are none"):
        adapted("Griffin").plain.executor().use_adapter(0, "all")


@pytest.mark.parametrize("name", ["Griffin", "Gemma"])
def test_adapter_whose_b_is_zero_equals_the_model(name):
    plain = engines(CONFIGS[name])
    factors = random_factors(plain.config, 0)
    zero = {one: Factors(f.a, 0 * f.b) for one, f in factors.items() if "rg_lru" not in one}
    zero |= {one: Factors(0 * f.a, f.b) for one, f in factors.items() if "rg_lru" in one}
    folder = write_adapter(plain.checkpoint.path.parent / "zero", plain.config, zero)
    terms = {"zero": read_low_rank(folder, plain.config).terms}
    tokens, capacity = plain.tokens(2, 9), CAPACITY if plain.config.needs_capacity else None
    torch_engine = build_torch_engine(plain.config, plain.checkpoint.tensor, "float32", "float32", "cpu", terms)
    for engine, base in (
        (build_engine(plain.checkpoint, "float32", 1, terms), plain.onnx),
        (torch_engine, plain.torch),
    ):
        executors = engine.executor(2, capacity), base.executor(2, capacity)
        executors[0].use_adapter(1, "zero")
        found, expected = (read(executor, [0, 1], tokens, [7, 1, 1]) for executor in executors)
        np.testing.assert_array_equal(found, expected)


def test_bfloat16_model_computes_terms_in_float32():
    """Rows with an adapter lie as near to the float32 model as those without."""
    case = adapted("Griffin")
    terms = {"all": read_low_rank(case.plain.checkpoint.path.parent / "all", case.plain.config).terms}
    narrow = build_torch_engine(case.plain.config, case.plain.checkpoint.tensor, "bfloat16", "bfloat16", "cpu", terms)
    assert {term.up.dtype.itemsize for term in narrow.adapters["all"].values()} == {4}
    tokens = case.plain.tokens(2, 8)
    executor = narrow.executor(2)
    executor.use_adapter(1, "all")
    found = executor.prefill([0, 1], tokens, None, "all")
    errors = []
    for row, name in enumerate((None, "all")):
        exact = case.expected(name, tokens[[row]])[0]
        errors.append(np.linalg.norm(found[row] - exact) / np.linalg.norm(exact))
    assert max(errors) < 3e-2, errors
