"""Suspended anywhere and taken up again, here or from a file: together exactly the uninterrupted answer."""

from dataclasses import replace

import numpy as np
import pytest
from adapters import random_factors, write_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import End, Job, Piece
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.sampling import TokenLogProbability
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateStore
from griffinlm.generation.suspended import Suspended
from griffinlm.state import StateError

TEXT = "the hawk and the griffin are older than the hill they hunt over, and they do not grow"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
OPTIONS = [
    {"seed": 3, "max_tokens": 16, "min_tokens": 16},
    {"temperature": 0.0, "max_tokens": 9, "log_probabilities": 2},
    {"seed": 1, "max_tokens": 30, "stop": ["e", "th", "a ha"], "log_probabilities": 0},
    {"seed": 2, "max_tokens": 20, "repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.7},
    {"seed": np.int64(5), "max_tokens": np.int64(9), "logit_bias": {10: -3.0, 9: 2, 200: np.float32(1.5)}},
    {"seed": 4, "max_tokens": 25, "json_schema": SCHEMA, "temperature": 3.0},
]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_model_directory, tmp_path_factory):
    base = griffinlm.load(tiny_model_directory)
    path = write_adapter(tmp_path_factory.mktemp("a") / "a", base.config, random_factors(base.config, 0, size=0.2))
    return griffinlm.load(
        tiny_model_directory, engine=request.param, weights="float32", threads=1, adapters={"one": path}
    )


@pytest.fixture(scope="module")
def service(model):
    with StateStore(model, None, memory_bytes=1 << 24) as store:
        made = GenerationService(model, store, num_slots=2, boundary_tokens=32)
        yield made
        made.close()


def ids_of(model):
    return [model.tokenizer.bos_id, *model.tokenizer.encode(TEXT)]


def run(service, job, num_steps=None):
    """Events of a job, of so many steps or until its end."""
    events = []
    while service.busy and (num_steps is None or num_steps > 0):
        events += [event for event in service.step(0.05) if event.job is job]
        num_steps = None if num_steps is None else num_steps - 1
    return events


def resumed(service, suspended, tenant):
    """Resumes when there is a place for the state: those on their way to the store hold theirs."""
    while True:
        try:
            return service.resume(suspended, tenant)
        except QueueFullError:
            service.step(0.05)


def told(events):
    """Text, tokens and log-probabilities of all pieces."""
    pieces = [event for event in events if isinstance(event, Piece)]
    logs = [one for piece in pieces for one in piece.log_probabilities or ()]
    return "".join(piece.text for piece in pieces), [token for piece in pieces for token in piece.token_ids], logs


def is_close(found, expected):
    """Log-probabilities of the same tokens, which may be read in other chunks."""
    assert [one.token for one in found] == [one.token for one in expected]
    values = [[one.log_probability for one in all_] for all_ in (found, expected)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


@settings(max_examples=15)
@given(data=st.data())
def test_cut_at_any_steps_equals_uninterrupted(model, service, data):
    chosen = data.draw(st.sampled_from(OPTIONS))
    adapter = data.draw(st.sampled_from([None, "one"]))
    alone = model.with_adapter(adapter).generate(ids_of(model), **chosen)
    job = service.submit(
        Job("a", ids_of(model), GenerationOptions.of(chosen), adapter=adapter, prompt_log_probabilities=1)
    )
    events = []
    for num_steps in data.draw(st.lists(st.integers(0, 6), max_size=6)):
        events += run(service, job, num_steps)
        if any(isinstance(event, End) for event in events):
            break
        suspended = service.suspend(job)
        if suspended is None:
            break
        if data.draw(st.booleans()):
            suspended = Suspended.from_bytes(suspended.to_bytes(), model)
        job = resumed(service, suspended, data.draw(st.sampled_from("ab")))
    events += run(service, job)
    end = events[-1]
    text, token_ids, logs = told(events)
    assert (end.token_ids, end.text, end.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    assert text == end.text
    assert token_ids == end.token_ids
    if "log_probabilities" in chosen:
        is_close(logs, alone.log_probabilities)
        is_close(end.log_probabilities, alone.log_probabilities)
    expected = model.with_adapter(adapter).score(ids_of(model))
    assert [one.log_probability for one in end.prompt_log_probabilities] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_steps", range(0, 12, 2))
def test_a_job_from_a_kept_state_goes_on_in_another_service(model, service, tmp_path, num_steps):
    (first,) = run(service, service.submit(Job("a", ids_of(model), None)))
    options = GenerationOptions.of({"seed": 6, "max_tokens": 10, "min_tokens": 10})
    job = service.submit(Job("a", [9, 9], options, state_id=first.prompt_state_id))
    run(service, job, num_steps)
    suspended = service.suspend(job)
    suspended.save(tmp_path / "answer")
    other = GenerationService(model, None, num_slots=1)
    end = run(other, other.resume(Suspended.load(tmp_path / "answer", model), "z"))[-1]
    other.close()
    whole = model.generate([*ids_of(model), 9, 9], seed=6, max_tokens=10, min_tokens=10)
    assert (end.token_ids, end.text) == (whole.token_ids, whole.text)


def test_a_seed_that_was_drawn_goes_along(model, service):
    job = service.submit(Job("a", ids_of(model), GenerationOptions.of({"max_tokens": 12, "min_tokens": 12})))
    run(service, job, 4)
    suspended = service.suspend(job)
    ends = [run(service, resumed(service, suspended, "a"))[-1] for _ in range(2)]
    assert ends[0].token_ids == ends[1].token_ids
    assert ends[0].token_ids[: len(suspended.written_ids)] == suspended.written_ids
    assert suspended.options.sampling.seed is not None


def suspended_answer(model, service, adapter=None):
    job = service.submit(Job("a", ids_of(model), GenerationOptions.of({"seed": 1, "max_tokens": 20}), adapter=adapter))
    run(service, job, 6)
    return service.suspend(job)


def test_saved_and_loaded_is_the_same(model, service, tmp_path):
    before = suspended_answer(model, service, "one")
    before.save(tmp_path / "answer")
    after = Suspended.load(tmp_path / "answer", model)
    assert after.to_bytes() == before.to_bytes()
    assert (after.adapter, after.options) == ("one", before.options)
    assert (tmp_path / "answer").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["answer"]


@given(data=st.data())
def test_every_changed_or_missing_byte_is_noticed(model, service, data):
    content = bytearray(_content(model, service))
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    with pytest.raises(StateError) as refused:
        Suspended.from_bytes(bytes(content), model)
    assert "\n" not in str(refused.value)


_kept: dict = {}


def _content(model, service):
    if model not in _kept:
        _kept[model] = suspended_answer(model, service).to_bytes()
    return _kept[model]


def test_another_model_and_other_files_are_refused(model, service, tiny_model_without_tokenizer, tmp_path):
    content = suspended_answer(model, service, "one").to_bytes()
    other = griffinlm.load(tiny_model_without_tokenizer)
    with pytest.raises(StateError, match=r"suspended answer of .* bytes belongs to another model: tokenizer"):
        Suspended.from_bytes(content, other)
    model.read("a").save(tmp_path / "state")
    with pytest.raises(StateError, match="no suspended answer"):
        Suspended.load(tmp_path / "state", model)
    with pytest.raises(StateError, match="there is no suspended answer"):
        Suspended.load(tmp_path / "nothing", model)
    (tmp_path / "answer").write_bytes(content)
    with pytest.raises(StateError, match=r"does not have the arrays of this model: suspended\."):
        griffinlm.State.load(tmp_path / "answer", model.with_adapter("one"))


def test_a_well_sealed_file_with_impossible_content_is_refused(model, service):
    good = suspended_answer(model, service)
    for change, words in (
        ({"written_ids": [*good.written_ids, 5]}, "that cannot be"),
        ({"token_ids": good.token_ids[:2]}, "that cannot be"),
        ({"token_ids": [], "written_ids": []}, "that cannot be"),
        ({"token_ids": [*good.token_ids[:-1], 99_999]}, "token id 99999"),
        ({"options": None}, "that cannot be"),
        ({"num_told": 10}, "that cannot be"),
        ({"state": good.state.with_pending([3])}, "that cannot be"),
        ({"state": griffinlm.State.stack([good.state, good.state])}, "one row"),
        ({"num_told": float("inf")}, "no suspended answer"),
        ({"boundaries": [1.5]}, "no suspended answer"),
        ({"log_probabilities": [TokenLogProbability(5, -1.0, ())]}, "log-probability for each token"),
        ({"num_prompt_alternatives": 1}, "log-probability for each token"),
        ({"options": replace(good.options, json_schema='{"x-guidance": {}}')}, "no suspended answer"),
        ({"options": replace(good.options, json_schema="[" * 100_000)}, "no suspended answer"),
    ):
        with pytest.raises(StateError, match=words):
            Suspended.from_bytes(replace(good, **change).to_bytes(), model)


def test_what_cannot_be_suspended_is_refused(model, service):
    job = service.submit(Job("a", ids_of(model), GenerationOptions.of({"max_tokens": 4}), num_answers=2))
    with pytest.raises(GriffinError, match="2 answers"):
        service.suspend(job)
    service.cancel(job)
    with pytest.raises(GriffinError, match="has ended"):
        service.suspend(job)


def test_resumed_answers_that_wait_hold_places_and_no_more_than_there_are(model):
    service = GenerationService(model, None, num_slots=1, num_places=4)
    options = GenerationOptions.of({"seed": 1, "max_tokens": 20, "min_tokens": 20})
    suspended = []
    for _ in range(3):
        job = service.submit(Job("a", ids_of(model), options))
        run(service, job, 6)
        suspended.append(service.suspend(job))
    whole = run(service, service.submit(Job("a", ids_of(model), options)))[-1].token_ids
    assert service.memory().aside_bytes == 0
    jobs = [service.resume(one, "a") for one in suspended[:2]]
    assert service.memory().aside_bytes == 2 * service.state_bytes
    with pytest.raises(QueueFullError, match="resumed"):
        service.resume(suspended[2], "a")
    run(service, jobs[0], 1)
    assert service.memory().aside_bytes == service.state_bytes
    assert service.suspend(jobs[1]) is suspended[1]
    assert service.memory().aside_bytes == 0
    jobs[1] = service.resume(suspended[1], "a", timeout_seconds=0.0)
    late = run(service, jobs[1])[-1]
    assert (late.finish_reason, service.memory().aside_bytes) == ("deadline", 0)
    jobs[1:] = [service.resume(one, "a") for one in suspended[1:]]
    ends = [event for event in (*run(service, jobs[1]), *run(service, jobs[2])) if isinstance(event, End)]
    assert whole in [end.token_ids for end in ends]
    assert (service.memory().aside_bytes, service.num_free_slots) == (0, 1)
    service.close()


def test_a_suspended_answer_of_another_model_is_not_resumed(model, service, tiny_model_without_tokenizer):
    suspended = suspended_answer(model, service)
    other = GenerationService(griffinlm.load(tiny_model_without_tokenizer), None, num_slots=1)
    with pytest.raises(StateError, match="another model"):
        other.resume(suspended, "a")
    other.close()


@pytest.mark.parametrize("token_ids", [[2, 9, 10], [9, 10]])
def test_a_job_under_a_tuned_state_suspended_while_it_waits_ends_as_uninterrupted(
    tiny_model_directory, tmp_path, token_ids
):
    base = griffinlm.load(tiny_model_directory, engine="onnx", weights="float32", threads=1)
    base.read([base.tokenizer.bos_id]).save(tmp_path / "tuned.safetensors")
    tuned = griffinlm.load(
        tiny_model_directory,
        engine="onnx",
        weights="float32",
        threads=1,
        adapters={"tuned": tmp_path / "tuned.safetensors"},
    )
    service = GenerationService(tuned, None, num_slots=1)
    job = Job("a", token_ids, GenerationOptions.of({"seed": 1, "max_tokens": 5}), adapter="tuned")
    suspended = service.suspend(service.submit(job))
    ends = [run(service, service.submit(job))[-1], run(service, resumed(service, suspended, "a"))[-1]]
    assert ends[0].token_ids == ends[1].token_ids
    assert str(ends[0].error) == str(ends[1].error)
    assert (ends[0].error is None) == (token_ids[0] == tuned.tokenizer.bos_id)
    service.close()
