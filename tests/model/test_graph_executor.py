"""Steps of the CUDA graph = steps of the ordinary executor on a CPU: logits, tokens, states.

Without a GPU the body of the graph runs as it is, on a CPU.
"""

import gc
import weakref

import numpy as np
import pytest
import torch
from device import DEVICE, HAS_GPU
from small_models import PATTERN_VOCAB, PATTERNS, pattern_config, random_model
from tolerances import assert_agree

from griffinlm.config import ModelConfig, RecursionConfig
from griffinlm.executor import Draw, DrawingExecutor, ExecutorError
from griffinlm.generation.candidates import draw_tokens
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.model.engine import TorchEngine
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.graph_executor import GraphExecutor
from griffinlm.model.low_rank import LowRankTerm

NUM_SLOTS, CAPACITY = 5, 32
ORDERS = ([0], [3, 1], [4, 0, 2], [1], [2, 3, 4, 0, 1], [0, 1, 2])


def both(config: ModelConfig, window_dtype: str = "float32") -> tuple[GraphExecutor, TorchExecutor]:
    """Two executors with the same weights whose slots have read prompts of different lengths."""
    engines = [TorchEngine(random_model(config, seed=1).to(device), window_dtype) for device in (DEVICE, "cpu")]
    capacity = CAPACITY if config.needs_capacity else None
    pair = GraphExecutor(engines[0], NUM_SLOTS, capacity), TorchExecutor(engines[1], NUM_SLOTS, capacity)
    for slot, length in enumerate((1, 4, 6, 7, 13)):
        tokens = np.random.default_rng(slot).integers(0, PATTERN_VOCAB, (1, length))
        for executor in pair:
            executor.prefill([slot], tokens, None, "none")
    return pair


def assert_same_slots(one: TorchExecutor, other: TorchExecutor) -> None:
    for slot in range(NUM_SLOTS):
        found, expected = one.export_state(slot), other.export_state(slot)
        for name, array in expected.items():
            assert_agree(found[name], array, "model", "float32", "torch", f"{name} of slot {slot}")


# Numbers that differ in their last digit on two devices may be rounded to different keys.
@pytest.mark.parametrize("window_dtype", ["float32"] if HAS_GPU else ["float32", "bfloat16"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_equal_those_of_the_ordinary_executor(pattern, window_dtype):
    """Slots in any order and number: those of a call that is no power of two run beside rows that stand still."""
    graphs, plain = both(pattern_config(pattern), window_dtype)
    for turn in range(12):
        slots = ORDERS[turn % len(ORDERS)]
        tokens = [(3 * turn + slot) % PATTERN_VOCAB for slot in slots]
        assert_agree(graphs.step(slots, tokens), plain.step(slots, tokens), "model", "float32", "torch")
    if window_dtype == "float32":
        assert_same_slots(graphs, plain)


def test_steps_of_layers_that_share_parameters_equal_those_of_the_ordinary_executor():
    graphs, plain = both(pattern_config("Griffin", RecursionConfig(num_loops=2, tie="matrices", rank=2)))
    for _ in range(3):
        assert_agree(graphs.step([1, 3], [4, 5]), plain.step([1, 3], [4, 5]), "model", "float32", "torch")
    assert_same_slots(graphs, plain)


def test_a_step_changes_no_other_slot():
    graphs, _ = both(pattern_config("Griffin"))
    before = {slot: graphs.export_state(slot) for slot in (0, 2, 4)}
    graphs.step([3, 1, 3][:2], [1, 2])
    for slot, arrays in before.items():
        for name, array in graphs.export_state(slot).items():
            assert np.array_equal(array, arrays[name])


@pytest.mark.parametrize("pattern", ["Griffin", "Gemma"])
def test_tokens_drawn_are_those_that_generation_draws_from_the_logits(pattern):
    graphs, plain = both(pattern_config(pattern))
    slots, tokens = [4, 0, 2], np.array([5, 6, 7])
    kinds = (Draw(0.1, 0.7), Draw(0.77, 1.0, top_k=5), Draw(0.5, 2.0, top_p=0.8), Draw(0.93, min_p=0.1))
    for turn in range(8):
        draws = [kinds[(turn + row) % len(kinds)] for row in range(3)]
        logits = plain.step(slots, tokens.tolist())
        parameters = [SamplingParameters(**{n: v for n, v in d._asdict().items() if n != "number"}) for d in draws]
        expected = draw_tokens(
            np.ascontiguousarray(logits[:, : PATTERN_VOCAB - 2]), parameters, [d.number for d in draws]
        )
        found = graphs.step_and_draw(slots, tokens.tolist(), draws, num_choices=PATTERN_VOCAB - 2)
        assert found.tolist() == expected.tolist()
        tokens = expected
    assert_same_slots(graphs, plain)


def test_greedy_draws_are_the_best_tokens():
    graphs, plain = both(pattern_config("Hawk"))
    found = graphs.step_and_draw([1, 2], [3, 4], [Draw(0.0, temperature=0.0)] * 2)
    assert found.tolist() == plain.step([1, 2], [3, 4]).argmax(axis=1).tolist()


def test_rolled_back_slot_goes_on_as_from_its_mark():
    graphs, _ = both(pattern_config("Griffin"))
    mark = graphs.mark(2)
    first = [graphs.step([2], [token]) for token in (1, 2, 3)]
    for _ in range(2):
        graphs.rollback(2, mark)
        for token, expected in zip((1, 2, 3), first, strict=True):
            assert np.array_equal(graphs.step([2], [token]), expected)


def test_imported_and_released_slots_are_as_in_the_ordinary_executor():
    graphs, plain = both(pattern_config("Gemma"))
    for executor in (graphs, plain):
        executor.import_state(0, executor.export_state(4))
        executor.release(1)
    for _ in range(3):
        assert_agree(graphs.step([0, 1], [1, 2]), plain.step([0, 1], [1, 2]), "model", "float32", "torch")
    assert_same_slots(graphs, plain)


def test_a_step_past_the_capacity_and_a_token_outside_the_vocabulary_are_refused_and_do_nothing():
    graphs, plain = both(pattern_config("Gemma"))
    for executor in (graphs, plain):
        executor.prefill([0], np.zeros((1, CAPACITY - 1), np.int64), None, "none")
    for slots, tokens, message in (
        ([1, 0], [1, 2], "capacity is 32"),
        ([1, 2], [1, PATTERN_VOCAB], "not in the vocabulary"),
    ):
        for step in (graphs.step, lambda s, t: graphs.step_and_draw(s, t, [Draw(0.5)] * len(s))):
            with pytest.raises(ExecutorError, match=message):
                step(slots, tokens)
    assert_same_slots(graphs, plain)


def test_slots_are_freed_with_the_executor():
    graphs, _ = both(pattern_config("Griffin"))
    graphs.step([0], [1])
    graphs.step_and_draw([1, 2], [1, 2], [Draw(0.5)] * 2)
    kept = weakref.ref(graphs.state.num_tokens)
    gc.disable()
    try:
        del graphs
        assert kept() is None
    finally:
        gc.enable()


def test_only_executors_that_draw_are_known_to():
    graphs, plain = both(pattern_config("Hawk"))
    assert isinstance(graphs, DrawingExecutor)
    assert not isinstance(plain, DrawingExecutor)


def test_slots_with_an_adapter_run_outside_of_graphs(monkeypatch):
    graphs, plain = both(pattern_config("Griffin"))
    down, up = torch.randn(2, 11), torch.randn(16, 2)
    for executor in (graphs, plain):
        engine = executor.engine
        query = engine.model.get_submodule("layers.2.attention.query")
        monkeypatch.setitem(engine.adapters, "one", {query: LowRankTerm(down.to(engine.device), up.to(engine.device))})
        executor.use_adapter(2, "one")
    for _ in range(3):
        assert_agree(graphs.step([2, 3], [1, 2]), plain.step([2, 3], [1, 2]), "model", "float32", "torch")
        drawn = graphs.step_and_draw([2, 3], [1, 2], [Draw(0.0, temperature=0.0)] * 2)
        assert drawn.tolist() == plain.step([2, 3], [1, 2]).argmax(axis=1).tolist()
    assert_same_slots(graphs, plain)
