"""Tokens that leave early under the ordinary scheduler: each at a depth of its own, told when it leaves.

States:
- on an executor without a model, answers = those said alone, in any company, cancelled anywhere and resumed;
- a model that skips: answers = those of one slot and of depth-wise batching, a state has read all but the last token;
- suspended in the middle of a token, an answer goes on as if it had never stopped;
- states of a model with exits are not taken for those of the model without, or with other exits;
- what cannot leave early is refused.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from adapters import random_factors, write_adapter
from fake_executor import FakeLoops, babble, said_alone, tokens_of
from held_bytes import held_bytes
from hypothesis import given
from hypothesis import strategies as st

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.exits import EXITS_FILE, Exits, read_exits, write_exits
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.depth import DepthScheduler
from griffinlm.generation.exits import ExitingExecutor, exiting_step
from griffinlm.generation.job import End, Job
from griffinlm.generation.request import Request, choose_each
from griffinlm.generation.scheduler import Scheduler
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateStore
from griffinlm.model.skipping import TorchSkippingExecutor
from griffinlm.recursive import Recursion, write_recursive
from griffinlm.state import State, StateError


class FakeExits(FakeLoops):
    """Takes tokens back too."""

    def withdraw(self, slot):
        if self.depth.pop(slot, None) is not None:
            self.read[slot].pop()


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 6)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 4),
    st.data(),
)
def test_every_request_says_what_it_says_alone_cancelled_anywhere_and_resumed(
    given_requests, num_slots, num_loops, data
):
    loops = FakeExits(num_slots, exits=lambda read: 1 + sum(read) % num_loops, num_loops=num_loops)
    scheduler = Scheduler(ExitingExecutor(loops), list, step=exiting_step(choose_each))
    requests = [babble(prompt, i, most) for i, (prompt, most) in enumerate(given_requests)]
    said = {i: [] for i in range(len(requests))}
    for request in requests:
        scheduler.submit(request)
    while scheduler.busy:
        for event in scheduler.step():
            said[requests.index(event.request)] += tokens_of([event], event.request)
        for i, request in enumerate(requests):
            if not scheduler.has_ended(request) and data.draw(st.integers(0, 5)) == 0:
                requests[i] = request.resumed(scheduler.cancel(request))
                scheduler.submit(requests[i])
    for i, (prompt, most) in enumerate(given_requests):
        assert said[i] == said_alone(prompt, i, most)
    assert not loops.depth
    assert not any(loops.read.values())


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tiny_model_directory):
    """A Griffin of eight layers, six of them in two loops, behind the first of which about half of the tokens leave."""
    config = dataclasses.replace(open_checkpoint(tiny_model_directory).config, num_layers=8)
    plain = tmp_path_factory.mktemp("models") / "plain"
    write_checkpoint(config, initial_tensors(config, 0), plain, "griffinlm", None, tiny_model_directory)
    found = plain.with_name("skipping")
    write_recursive(open_checkpoint(plain), Recursion(2, rank=4), found)
    values = json.loads((found / "config.json").read_text())
    values["recursion"]["skips"] = True
    (found / "config.json").write_text(json.dumps(values))
    random, bias = np.random.default_rng(0), np.zeros(1, np.float32)
    inner, outer = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 6, config.width), (1, 6)))
    write_exits(found, Exits(inner, np.zeros((1, 6), np.float32), outer, bias, (0.5,), 0.9, (0.5,), 100))
    return found


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(directory, request):
    return griffinlm.load(directory, engine=request.param, early_exit=True, threads=1)


def test_tokens_on_their_way_keep_what_the_engine_says_at_most_and_nothing_when_they_have_left(model):
    num_slots, extra = 5, model.engine.extra()
    executor = model.engine.executor(num_slots)
    kept = executor._executor._changes
    most = 0
    for turn in range(12):
        # In calls of other rows each time, so that one row must not keep what others have left behind.
        slots = [slot for slot in range(num_slots) if (slot + turn) % 3]
        executor.advance(slots, [3 + slot for slot in slots])
        most = max(most, held_bytes([[change.before for change in changes_of(entry)] for entry in kept.values()]))
        assert most <= extra.of(num_slots)
    assert most > extra.of(num_slots) // 4
    for slot in range(num_slots):
        executor.export_state(slot)
    assert not kept


def changes_of(entry):
    """The changes of a slot: alone on onnx, those of a call on torch."""
    return [one for change, _ in entry for one in (change if isinstance(change, list) else [change])]


PROMPTS = ("the hawk", "over the sea and", "a")


def test_answers_in_a_batch_equal_those_alone_and_skip_tokens(model):
    options = {"temperature": 0.8, "seed": 3, "max_tokens": 24, "min_tokens": 24}
    together = model.generate(list(PROMPTS), **options)
    for prompt, found in zip(PROMPTS, together, strict=True):
        alone = model.generate(prompt, **options)
        assert found.token_ids == alone.token_ids
        arrays = found.state.arrays()
        assert 0 < arrays["num_skipped"][0, 0] < 24
        assert arrays["num_tokens"][0] == len(model.tokenizer.encode(prompt)) + 1 + 23
        assert arrays["num_skipped"].tolist() == alone.state.arrays()["num_skipped"].tolist()


def test_answers_equal_those_of_the_depth_scheduler(model):
    prompt = [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPTS[1])]
    found = model.generate(prompt, temperature=0.0, max_tokens=20, min_tokens=20)
    scheduler = DepthScheduler(model.engine.executor(1)._executor, lambda ids: np.asarray([ids]))
    # The service reads whole prompts at full depth, this one all but the last token.
    state = model.read(prompt).arrays()
    scheduler.submit(Request([found.token_ids[0]], Greedy(), 19, frozenset(), state))
    said = []
    while scheduler.busy:
        said += [event.token for event in scheduler.step()]
    assert said == found.token_ids[1:]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 8, 13])
def test_an_answer_suspended_in_the_middle_of_a_token_goes_on_as_if_it_had_never_stopped(model, num_steps):
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPTS[0])]
    options = GenerationOptions.of({"seed": 5, "max_tokens": 16, "min_tokens": 16})

    def told(service):
        pieces = []
        while service.busy:
            pieces += [event for event in service.step() if not isinstance(event, End)]
        return [token for piece in pieces for token in piece.token_ids]

    service = GenerationService(model, num_slots=2)
    service.submit(Job("one", ids, options, keep=False))
    expected = told(service)
    job, other = (service.submit(Job("one", ids, options, keep=False)) for _ in range(2))
    before = [event for _ in range(num_steps) for event in service.step() if event.job is job]
    service.cancel(other)
    suspended = service.suspend(job)
    assert suspended.state.num_tokens[0] == len(ids) + max(len(suspended.written_ids) - 1, 0)
    service.resume(suspended, "one", keep=False)
    assert [token for piece in before for token in piece.token_ids] + told(service) == expected
    service.close()


def test_a_token_taken_back_leaves_no_trace(directory):
    engine = griffinlm.load(directory, engine="torch", threads=1).engine
    executor = TorchSkippingExecutor(engine, 2, None, lambda x, depth: depth > 2)
    executor.prefill([0, 1], np.asarray([range(3, 9), range(12, 18)]), None, "none")
    before = [executor.export_state(slot) for slot in (0, 1)]
    executor.enter([0, 1], [7, 8])
    executor.run_loop([1])
    executor.run_loop([0, 1])
    for slot in (0, 1):
        executor.withdraw(slot)
        for name, array in executor.export_state(slot).items():
            np.testing.assert_array_equal(array, before[slot][name])


def test_states_with_and_without_exits_and_with_other_exits_never_meet(model, directory, tmp_path):
    """In one store's directory, on the way through a file, and in a service that would go on from them."""
    shutil.copytree(directory, tmp_path / "other")
    exits = read_exits(directory, model.config)
    assert exits is not None
    write_exits(tmp_path / "other", dataclasses.replace(exits, thresholds=(0.6,)))
    models = {
        "exits": model,
        "exits on torch": griffinlm.load(directory, engine="torch", early_exit=True),
        "none": griffinlm.load(directory),
        "others": griffinlm.load(tmp_path / "other", early_exit=True),
    }
    caps = {"memory_bytes": 1 << 20, "disk_bytes": 1 << 24}
    stores = {name: StateStore(one, tmp_path / "store", **caps) for name, one in models.items()}
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(PROMPTS[1])]
    service = GenerationService(model, stores["exits"], num_slots=1)
    service.submit(Job("one", ids, GenerationOptions.of({"seed": 5, "max_tokens": 4})))
    events = []
    while service.busy:
        events += service.step()
    kept = stores["exits"].get("one", events[-1].end_state_id)
    state = State(kept.arrays, model.identity)
    state.save(tmp_path / "state.safetensors")
    for name, one in models.items():
        found = stores[name].find_longest_prefix("one", [*kept.token_ids, 3])
        assert (found is not None) == name.startswith("exits")
        if name.startswith("exits"):
            assert State.load(tmp_path / "state.safetensors", one).digest() == state.digest()
        else:
            with pytest.raises(StateError, match="belongs to another model: weights"):
                State.load(tmp_path / "state.safetensors", one)
            with pytest.raises(GriffinError, match="model"):
                GenerationService(one, stores["exits"], num_slots=1)
    service.close()
    for store in stores.values():
        store.close()


def test_exits_beside_a_low_rank_adapter_are_those_of_torch_where_no_engine_is_named(directory, tmp_path):
    config = open_checkpoint(directory).config
    adapters = {"one": write_adapter(tmp_path / "low-rank", config, random_factors(config, 0))}
    auto, named = (
        griffinlm.load(directory, engine=engine, early_exit=True, adapters=adapters, threads=1).with_adapter("one")
        for engine in ("auto", "torch")
    )
    found, expected = (one.generate(PROMPTS[0], max_tokens=8, seed=3) for one in (auto, named))
    assert found.token_ids == expected.token_ids


def test_what_cannot_leave_early_is_refused(directory, tiny_model_directory, tmp_path):
    config = open_checkpoint(directory).config
    low_rank = write_adapter(tmp_path / "low-rank", config, random_factors(config, 0))
    with pytest.raises(GriffinError, match="was not trained to do without the tokens that leave"):
        griffinlm.load(tiny_model_directory, early_exit=True)
    with pytest.raises(GriffinError, match="low-rank adapters have no early exits on engine onnx"):
        griffinlm.load(directory, engine="onnx", early_exit=True, adapters={"one": low_rank})
    with pytest.raises(GriffinError, match=r"num_guesses is [0-9]+ beside early_exit"):
        griffinlm.load(directory, early_exit=True, num_guesses=2)
    shutil.copytree(directory, tmp_path / "without")
    (tmp_path / "without" / EXITS_FILE).unlink()
    with pytest.raises(GriffinError, match="does not say when tokens may leave early"):
        griffinlm.load(tmp_path / "without", early_exit=True)


class Greedy:
    is_complete = False

    def choose(self, logits):
        return int(logits.argmax())


@pytest.mark.parametrize("num_skipped", [-1, 6])
def test_a_state_file_with_counts_that_cannot_be_is_refused(model, tmp_path, num_skipped):
    state = model.read([3, 4, 5, 6, 7])
    state.arrays()["num_skipped"][:] = num_skipped
    state.save(tmp_path / "state")
    with pytest.raises(GriffinError, match="counts skipped tokens that cannot be"):
        State.load(tmp_path / "state", model)
