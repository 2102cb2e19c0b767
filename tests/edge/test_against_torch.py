"""The onnx engine computes what the torch engine computes: logits and every state array, one block or many.

States:
- a single block of every kind, and models of every pattern, in float32: after a prompt, chunks, single tokens;
- random models on random calls: padding anywhere, packed documents, several rows, calls cut into small chunks;
- gates, decays and rings at their extremes;
- quantized weights and int8 windows, against float32 arithmetic on the numbers that the integers stand for;
- a state goes from one engine to the other and back.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import configs, random_model
from tolerances import assert_agree

from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.edge.engine import build_engine
from griffinlm.model.engine import build_engine as build_torch_engine

from .models import (
    BLOCKS,
    CONFIGS,
    RECIPE_OF,
    Engines,
    assert_same_state,
    calls,
    config_of,
    cuts,
    engines,
    read,
    small_calls,
)

LENGTHS = (1, 2, 3, 5, 6, 7, 8, 9, 15, 40)


def assert_same_from_empty(pair: Engines, tokens: np.ndarray, chunks: list[int]) -> None:
    """Both engines give the same logits of all tokens, and the same states."""
    slots = range(len(tokens))
    here, there = pair.executor(len(tokens)), pair.torch_executor(len(tokens))
    assert_agree(read(here, slots, tokens, chunks), read(there, slots, tokens, chunks), *pair.row_against_torch)
    for slot in slots:
        assert_same_state(here.export_state(slot), there.export_state(slot), pair.row_against_torch)


@pytest.mark.parametrize("window_dtype", ["float32", "float16"])
@pytest.mark.parametrize("config", BLOCKS.values(), ids=BLOCKS)
def test_every_kind_of_block_equals_torch(config, window_dtype):
    pair = engines(config, "float32", window_dtype)
    for num_tokens in LENGTHS:
        assert_same_from_empty(pair, pair.tokens(2, num_tokens), [num_tokens])
    assert_same_from_empty(pair, pair.tokens(2, 40), [1] * 40)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_pattern_equals_torch_in_prompts_chunks_and_steps(name):
    pair = engines(CONFIGS[name])
    tokens = pair.tokens(2, 60)
    for chunks in ([60], [1] * 60, [7, 1, 8, 1, 1, 30, 12], [1, 59]):
        assert_same_from_empty(pair, tokens, chunks)


@settings(max_examples=40)
@given(configs(), st.integers(0, 2**31), st.data())
def test_random_models_equal_torch(config, seed, data):
    pair = engines.__wrapped__(config, seed=seed)
    tokens = pair.tokens(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 40)), seed)
    with small_calls(data.draw(st.integers(1, 16))):
        assert_same_from_empty(pair, tokens, data.draw(cuts(config, tokens.shape[1])))


@given(st.sampled_from(sorted(CONFIGS)), st.integers(1, 3), st.integers(1, 9), st.data())
def test_padding_documents_and_small_calls_equal_torch(name, num_rows, chunk_tokens, data):
    pair = engines(CONFIGS[name])
    here, there = pair.executor(num_rows), pair.torch_executor(num_rows)
    with small_calls(chunk_tokens):
        for tokens, positions, logits in data.draw(calls(pair, num_rows)):
            slots = range(num_rows)
            found = here.prefill(slots, tokens, positions, logits)
            expected = there.prefill(slots, tokens, positions, logits)
            real = positions >= 0 if logits == "all" else (positions >= 0).any(axis=1)
            if logits == "none":
                assert found is expected is None
            else:
                assert_agree(found[real], expected[real], *pair.row)
            for slot in slots:
                assert_same_state(here.export_state(slot), there.export_state(slot), pair.row)


@pytest.mark.parametrize("window_tokens", [1, 100, 255, 256, 300])
def test_prompts_longer_than_a_call_and_a_window_equal_torch(window_tokens):
    attention = dataclasses.replace(CONFIGS["Griffin"].attention, window_tokens=window_tokens)
    pair = engines(config_of("attention first", 2, attention=attention))
    assert_same_from_empty(pair, pair.tokens(1, 700), [511, 1, 1, 187])
    assert_same_from_empty(pair, pair.tokens(3, 330), [330])


@pytest.mark.parametrize("slowest", [-16.0, 0.0, 16.0])
@pytest.mark.parametrize("gate", [-60.0, -20.0, 20.0])
def test_extreme_gates_and_decays_equal_torch(gate: float, slowest: float, tmp_path: Path):
    """A gate next to 0 keeps the state almost whole: what it lets in is the root of a very small number."""
    config = BLOCKS["recurrent"]
    tensors = {name: tensor.detach().numpy() for name, tensor in random_model(config, 0).named_parameters()}
    for name, values in tensors.items():
        if name.endswith("recurrence_gate.bias"):
            values[:] = np.linspace(0, gate, values.size).reshape(values.shape)
        elif name.endswith("a_param"):
            values[:] = np.linspace(0, slowest, values.size)
    write_checkpoint(config, tensors.items(), tmp_path / "model", "griffinlm")
    checkpoint = open_checkpoint(tmp_path / "model")
    reference = build_torch_engine(config, checkpoint.tensor, "float32", "float32", "cpu")
    pair = Engines(checkpoint, build_engine(checkpoint, "float32", 1), reference, "float32")
    assert_same_from_empty(pair, pair.tokens(1, 300), [200, *[1] * 100])


@pytest.mark.parametrize("weights", sorted(RECIPE_OF.keys() - {"float32"}))
@pytest.mark.parametrize("name", [*CONFIGS, *BLOCKS])
def test_quantized_weights_equal_torch_on_what_they_stand_for(name, weights):
    pair = engines({**CONFIGS, **BLOCKS}[name], weights)
    assert_same_from_empty(pair, pair.tokens(2, 40), [20, *[1] * 20])


@pytest.mark.parametrize("name", [name for name in (*CONFIGS, *BLOCKS) if "attention" in name])
def test_int8_window_equals_torch_with_a_float32_window(name):
    pair = engines({**CONFIGS, **BLOCKS}[name], "float32", "int8")
    assert_same_from_empty(pair, pair.tokens(2, 40), [20, *[1] * 20])


@pytest.mark.parametrize("window_dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_state_goes_from_engine_to_engine_and_back(name, window_dtype):
    pair = engines(CONFIGS[name], "float32", window_dtype)
    tokens = pair.tokens(1, 60)
    expected = pair.torch_executor()
    logits, parts, state = expected.prefill([0], tokens, None, "all"), [], None
    for turn in range(6):
        executor = (pair.torch_executor, pair.executor)[turn % 2]()
        if state is not None:
            executor.import_state(0, state)
        parts.append(read(executor, [0], tokens[:, 10 * turn : 10 * turn + 10], [6, 1, 1, 2]))
        state = executor.export_state(0)
    assert_agree(np.concatenate(parts, axis=1), logits, *pair.row)
    assert state is not None
    assert_same_state(state, expected.export_state(0), pair.row)
