"""Reading ahead changes no answer and no state, whatever the guesses are worth.

States:
- logits of every step = those of the plain executor, for tokens that were guessed and for others;
- the state after any number of the tokens read ahead = that of never having read the rest;
- greedy and sampled answers in a batch = those of the plain executor, token for token, so also in distribution.
"""

import dataclasses

import numpy as np
import pytest
from held_bytes import held_bytes
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, random_model
from tolerances import assert_agree

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.errors import GriffinError
from griffinlm.executor import ExecutorError
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.request import Request
from griffinlm.generation.sampling import Sampler, choose_together
from griffinlm.generation.scheduler import Scheduler
from griffinlm.generation.speculation import SpeculatingExecutor
from griffinlm.model.drafting import TorchDraftingExecutor
from griffinlm.model.engine import TorchEngine
from griffinlm.presets import PRESETS
from griffinlm.recursive import Recursion, write_recursive

CAPACITY = 40
NUM_SLOTS = 2

deep = configs().filter(lambda config: config.num_layers > 1)


def engine_of(config, seed=0):
    return TorchEngine(random_model(config, seed), "float32")


def capacity_of(config):
    return CAPACITY if config.needs_capacity else None


def drafting_of(engine, num_slots=1, num_layers=1):
    return TorchDraftingExecutor(engine, num_slots, capacity_of(engine.config), num_layers)


def agree(found, expected, what=""):
    assert_agree(found, expected, "model", "float32", "torch", what)


def states_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        agree(found[name], array, name)


def random_tokens(config, seed, num_tokens):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (NUM_SLOTS, num_tokens))


def plain_after(engine, tokens):
    """Logits [T, V] and the state after tokens, read by the plain executor."""
    executor = engine.executor(1, capacity_of(engine.config))
    return executor.prefill([0], np.asarray([tokens]), None, "all")[0], executor.export_state(0)


@given(deep, st.integers(0, 2**31), st.data())
def test_keeping_any_number_of_tokens_equals_never_having_read_the_others(config, seed, data):
    engine = engine_of(config, seed)
    prompts = random_tokens(config, seed, data.draw(st.integers(1, 12)))
    executor = drafting_of(engine, NUM_SLOTS, data.draw(st.integers(1, config.num_layers - 1)))
    executor.prefill(range(NUM_SLOTS), prompts[:, :-1], None, "none") if prompts.shape[1] > 1 else None
    num_guesses = data.draw(st.integers(0, 4))
    guesses, logits = executor.read_ahead(range(NUM_SLOTS), prompts[:, -1].tolist(), num_guesses)
    assert guesses.shape == (NUM_SLOTS, num_guesses)
    for slot in range(NUM_SLOTS):
        expected, _ = plain_after(engine, [*prompts[slot], *guesses[slot]])
        agree(logits[slot], expected[prompts.shape[1] - 1 :])
        num_kept = data.draw(st.integers(1, num_guesses + 1))
        executor.keep(slot, num_kept)
        kept = [*prompts[slot], *guesses[slot, : num_kept - 1]]
        states_agree(executor.export_state(slot), plain_after(engine, kept)[1])


@given(deep, st.integers(0, 2**31), st.data())
def test_every_step_gives_the_logits_of_the_plain_executor(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 9)
    executor = SpeculatingExecutor(drafting_of(engine, NUM_SLOTS), data.draw(st.integers(1, 3)))
    read: list[list[int]] = [[] for _ in range(NUM_SLOTS)]
    logits: dict[int, np.ndarray] = {}
    for place in range(tokens.shape[1]):
        slots = data.draw(st.lists(st.integers(0, NUM_SLOTS - 1), min_size=1, unique=True))
        follows = {slot: slot in logits and data.draw(st.booleans()) for slot in slots}
        given_tokens = [int(logits[s].argmax()) if follows[s] else int(tokens[s, place]) for s in slots]
        found = executor.step(slots, given_tokens)
        for slot, token, row in zip(slots, given_tokens, found, strict=True):
            read[slot].append(token)
            logits[slot] = row
            agree(row, plain_after(engine, read[slot])[0][-1])
    for slot, ids in enumerate(read):
        if ids:
            states_agree(executor.export_state(slot), plain_after(engine, ids)[1])


def answers(engine, executor, prompts, parameters):
    scheduler = Scheduler(executor, lambda ids: np.asarray([ids]), choose=choose_together)
    requests = [
        Request(p, Sampler(dataclasses.replace(parameters, seed=i), p, len(p)), 12, frozenset({1}))
        for i, p in enumerate(prompts)
    ]
    for request in requests:
        scheduler.submit(request)
    said = {request: [] for request in requests}
    states = {}
    while scheduler.busy:
        for event in scheduler.step():
            said[event.request].append(event.token)
            if event.finish_reason is not None:
                states[event.request] = event.remainder.state
    return [(said[request], states[request]) for request in requests]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-gemma"])
def test_answers_equal_those_of_the_plain_executor_token_for_token(preset, temperature):
    config = PRESETS[preset]
    engine = engine_of(config)
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (5, 7)).tolist()
    parameters = SamplingParameters(temperature=temperature, repetition_penalty=1.1)
    executor = SpeculatingExecutor(drafting_of(engine, NUM_SLOTS), 3)
    found = answers(engine, executor, prompts, parameters)
    expected = answers(engine, engine.executor(NUM_SLOTS, capacity_of(config)), prompts, parameters)
    for (tokens, state), (expected_tokens, expected_state) in zip(found, expected, strict=True):
        assert tokens == expected_tokens
        states_agree(state, expected_state)


def test_guesses_that_come_true_cost_no_reading():
    config = dataclasses.replace(PRESETS["tiny-griffin"], vocab_size=1)
    executor = SpeculatingExecutor(drafting_of(engine_of(config)), 3)
    for _ in range(8):
        executor.step([0], [0])
    assert (executor.num_readings, executor.num_guessed, executor.num_true) == (2, 6, 6)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("num_guesses", [1, 4])
def test_what_is_read_ahead_takes_the_bytes_that_the_engine_says(recursive_directory, engine, num_guesses):
    model = griffinlm.load(recursive_directory, engine=engine, num_guesses=num_guesses, threads=1)
    extra, executor = model.engine.extra(), model.engine.executor(3)
    most = 0
    for turn in range(8):
        slots = [slot for slot in range(3) if (slot + turn) % 3]
        executor.step(slots, [5 + slot for slot in slots])
        logits = [ahead.logits for ahead in executor._ahead.values()]
        most = max(most, held_bytes(executor._executor._ahead, logits))
        assert most <= extra.of(3)
    # On onnx a convolution keeps one input a token, and the state all of them; guesses may be fewer.
    assert most > extra.of(3) // (1 if engine == "torch" else 4) - 1
    executor.release(0)
    assert held_bytes(executor._executor._ahead) < most


def test_a_refused_token_leaves_the_other_rows_where_they_were():
    engine = engine_of(PRESETS["tiny-griffin"])
    executor = SpeculatingExecutor(drafting_of(engine, NUM_SLOTS), 2)
    executor.step([0, 1], [3, 4])
    with pytest.raises(ExecutorError, match="is not in the vocabulary"):
        executor.step([0, 1], [5, engine.config.vocab_size])
    states_agree(executor.export_state(0), plain_after(engine, [3])[1])
    states_agree(executor.export_state(1), plain_after(engine, [4])[1])


def test_guesses_end_where_the_capacity_does():
    engine = engine_of(PRESETS["tiny-gemma"])
    executor = TorchDraftingExecutor(engine, 1, 4, 1)
    executor.prefill([0], np.asarray([[1, 2]]), None, "none")
    guesses, logits = executor.read_ahead([0], [3], 5)
    assert (guesses.shape[1], logits.shape[1]) == (1, 2)


def test_what_cannot_guess_is_refused():
    engine = engine_of(PRESETS["tiny-griffin"])
    with pytest.raises(ExecutorError, match="the model has no loops, so the number of layers that guess must be given"):
        TorchDraftingExecutor(engine, 1)
    with pytest.raises(ExecutorError, match="layers guess; it must be 1 to"):
        drafting_of(engine, num_layers=engine.config.num_layers)
    with pytest.raises(ExecutorError, match="num_guesses is 0; it must be at least 1"):
        SpeculatingExecutor(drafting_of(engine), 0)


@pytest.fixture(scope="module")
def recursive_directory(tmp_path_factory, tiny_model_directory):
    """A Griffin of eight layers, six of them in two loops, with a tokenizer."""
    config = dataclasses.replace(open_checkpoint(tiny_model_directory).config, num_layers=8)
    plain = tmp_path_factory.mktemp("models") / "plain"
    write_checkpoint(config, initial_tensors(config, 0), plain, "griffinlm", None, tiny_model_directory)
    write_recursive(open_checkpoint(plain), Recursion(2, rank=4), plain.with_name("recursive"))
    return plain.with_name("recursive")


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_model_that_guesses_says_what_it_says_without_guesses(recursive_directory, engine):
    plain, guessing = (
        griffinlm.load(recursive_directory, engine=engine, weights="float32", num_guesses=n, threads=1)
        for n in (None, 3)
    )
    start = plain.read("the hawk")
    for options in ({"temperature": 0.0}, {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.2}):
        (expected, found) = (
            model.generate(["over the sea", "and"], max_tokens=20, **options) for model in (plain, guessing)
        )
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
        for one, other in zip(found, expected, strict=True):
            states_agree(one.state.arrays(), other.state.arrays())
        behind = [model.generate("sea", state=start, max_tokens=9, **options) for model in (plain, guessing)]
        assert behind[0].token_ids == behind[1].token_ids


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_model_without_loops_cannot_guess(tiny_model_directory, engine):
    with pytest.raises(GriffinError, match="the model has no loops"):
        griffinlm.load(tiny_model_directory, engine=engine, num_guesses=2)
