"""What a service promises: answers as if alone, states kept and found, nothing told before it is safe."""

import pickle
import threading

import numpy as np
import pytest
from fake_executor import Clock

import griffinlm
import griffinlm.generation.running as running_module
from griffinlm.errors import GriffinError
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import End, Job, Piece
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.sampling import seen_ids
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateNotFoundError, StateStore, StoreError

TEXT = "the hawk and the griffin are older than the hill they hunt over, and they do not grow"


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_model_directory):
    return griffinlm.load(tiny_model_directory, engine=request.param, weights="float32", threads=1)


@pytest.fixture(scope="module")
def onnx_model(tiny_model_directory):
    return griffinlm.load(tiny_model_directory, engine="onnx", weights="float32", threads=1)


@pytest.fixture
def store(onnx_model):
    with StateStore(onnx_model, None, memory_bytes=1 << 24) as opened:
        yield opened


@pytest.fixture
def service(onnx_model, store):
    made = GenerationService(onnx_model, store, num_slots=2)
    yield made
    made.close()


def options(max_tokens=12, **others):
    return GenerationOptions.of({"max_tokens": max_tokens, "min_tokens": max_tokens, "seed": 5, **others})


def ids_of(model, text=TEXT):
    return [model.tokenizer.bos_id, *model.tokenizer.encode(text)]


def run(service):
    events = []
    while service.busy:
        events += service.step(0.05)
    return events


def end_of(service, job):
    (end,) = [event for event in run(service) if isinstance(event, End) and event.job is job]
    return end


def answered(service, token_ids, **job):
    job.setdefault("options", options())
    return end_of(service, service.submit(Job("a", token_ids, **job)))


@pytest.mark.parametrize("has_store", [False, True])
def test_an_answer_equals_generate(model, has_store):
    store = StateStore(model, None, memory_bytes=1 << 24) if has_store else None
    service = GenerationService(model, store, num_slots=2, boundary_tokens=16)
    chosen = {"max_tokens": 20, "seed": 7, "log_probabilities": 2, "stop": ["ee"], "repetition_penalty": 1.2}
    job = service.submit(Job("a", ids_of(model), GenerationOptions.of(chosen)))
    events = run(service)
    (end,) = [event for event in events if isinstance(event, End)]
    alone = model.generate(ids_of(model), **chosen)
    assert (end.token_ids, end.text, end.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
    pieces = [event for event in events if isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == end.text
    assert [token for piece in pieces for token in piece.token_ids] == end.token_ids
    assert [one for piece in pieces for one in piece.log_probabilities] == end.log_probabilities
    assert [one.token for one in end.log_probabilities] == end.token_ids
    assert end.job is job
    assert (end.end_state_id is not None) == has_store
    service.close()


def test_several_answers_equal_single_ones_with_the_following_seeds(model):
    service = GenerationService(model, None, num_slots=2)
    service.submit(Job("a", ids_of(model), options(), num_answers=3))
    ends = [event for event in run(service) if isinstance(event, End)]
    for end in ends:
        alone = model.generate(ids_of(model), max_tokens=12, min_tokens=12, seed=5 + end.answer)
        assert end.token_ids == alone.token_ids
    assert sorted(end.answer for end in ends) == [0, 1, 2]
    service.close()


def test_what_a_penalty_counts_of_a_document_is_found_once_for_all_answers(service, onnx_model, monkeypatch):
    counted = []
    monkeypatch.setattr(running_module, "seen_ids", lambda *given: counted.append(given[1]) or seen_ids(*given))
    first = answered(service, ids_of(onnx_model))
    behind = [*ids_of(onnx_model), *first.token_ids]
    counted.clear()
    jobs = [
        Job("a", behind, options(repetition_penalty=1.5), num_answers=4),
        Job("a", [], options(repetition_penalty=1.5), num_answers=4, state_id=first.end_state_id),
    ]
    for job in jobs:
        service.submit(job)
    for end in [event for event in run(service) if isinstance(event, End)]:
        alone = onnx_model.generate(behind, max_tokens=12, min_tokens=12, seed=5 + end.answer, repetition_penalty=1.5)
        assert end.token_ids == alone.token_ids
    # The document of the second is known in full once the store has found its state.
    assert counted == [behind, [], behind]


def test_the_next_turn_reads_only_what_is_new(service, onnx_model):
    document = ids_of(onnx_model)
    first = answered(service, document)
    assert first.usage.num_cached_tokens == 0
    following = [*document, *first.token_ids, 9, 10, 11]
    second = answered(service, following)
    # All but the answer's last token, which no step has read.
    assert second.usage.num_cached_tokens == len(document) + len(first.token_ids) - 1
    assert second.token_ids == onnx_model.generate(following, max_tokens=12, min_tokens=12, seed=5).token_ids
    assert service.counts.num_prefix_hits == 1


def test_the_same_document_again_reads_its_last_token_alone(service, onnx_model):
    document = ids_of(onnx_model)
    first, again = answered(service, document), answered(service, document)
    assert again.usage.num_cached_tokens == len(document) - 1
    assert (again.token_ids, again.prompt_state_id) == (first.token_ids, first.prompt_state_id)


def test_a_kept_state_is_document_and_pending_token(service, store, onnx_model):
    document = ids_of(onnx_model)
    end = answered(service, document, boundaries=(9,))
    for state_id, tokens in (
        (end.prompt_state_id, document),
        (end.end_state_id, document + end.token_ids),
    ):
        found = store.get("a", state_id)
        assert [*found.token_ids, found.arrays["pending"][0]] == tokens
        on = onnx_model.generate([*tokens, 9], max_tokens=5, min_tokens=5, seed=1)
        assert answered(service, [9], state_id=state_id, options=options(5, seed=1)).token_ids == on.token_ids
        again = answered(service, [], state_id=state_id, options=options(5, seed=2))
        assert again.token_ids == onnx_model.generate(tokens, max_tokens=5, min_tokens=5, seed=2).token_ids
    assert end.state_ids.keys() >= {len(document) - 1, len(document) + 11}


def test_reading_alone_keeps_the_document(service, store, onnx_model):
    document = ids_of(onnx_model)
    end = answered(service, document, options=None)
    assert (end.token_ids, end.text, end.finish_reason) == ([], "", "length")
    on = answered(service, [], state_id=end.prompt_state_id)
    assert on.token_ids == onnx_model.generate(document, max_tokens=12, min_tokens=12, seed=5).token_ids
    (lone,) = {answered(service, document[:1], options=None).prompt_state_id for _ in range(2)}
    assert [store.get("a", lone).arrays[name][0] for name in ("num_tokens", "pending")] == [0, document[0]]


@pytest.mark.parametrize("is_written", [False, True])
def test_scores_of_a_document_are_those_of_the_model(service, onnx_model, is_written):
    document = ids_of(onnx_model)
    answered(service, document)
    end = answered(service, document, options=options() if is_written else None, prompt_log_probabilities=2)
    assert end.usage.num_cached_tokens == 0
    assert [one.token for one in end.prompt_log_probabilities] == document[1:]
    assert all(len(one.alternatives) == 2 for one in end.prompt_log_probabilities)
    found = [one.log_probability for one in end.prompt_log_probabilities]
    assert found == pytest.approx(onnx_model.score(document), abs=2e-5)
    assert len(end.token_ids) == (12 if is_written else 0)


def test_a_tenant_finds_only_its_own_states(service, onnx_model):
    document = ids_of(onnx_model)
    end = answered(service, document)
    other = end_of(service, service.submit(Job("b", document, options())))
    assert other.usage.num_cached_tokens == 0
    lost = end_of(service, service.submit(Job("b", [9], options(), state_id=end.end_state_id)))
    assert lost.finish_reason == "error"
    assert isinstance(lost.error, StateNotFoundError)


def test_a_shared_state_is_found_by_every_tenant(service, store, onnx_model):
    document = ids_of(onnx_model)
    end = answered(service, document, options=None)
    store.share("a", end.prompt_state_id, "preface")
    other = end_of(service, service.submit(Job("b", [*document, 9], options())))
    assert other.usage.num_cached_tokens == len(document) - 1


def test_a_reply_that_comes_back_in_other_tokens_is_read_anew_and_counted(service, onnx_model):
    tokenizer, document = onnx_model.tokenizer, ids_of(onnx_model)
    end = answered(service, document, options=options(20))
    # Bytes that are no text come back as the character that stands for them.
    resent = tokenizer.encode(end.text)
    assert resent != end.token_ids[: len(resent)]
    again = answered(service, [*document, *resent, 9])
    assert again.usage.num_cached_tokens == len(document) - 1
    assert service.counts.num_reread_replies == 1
    answered(service, [*document, *tokenizer.encode("an edited message"), 9])
    answered(service, [*document, *end.token_ids, 9])
    assert service.counts.num_reread_replies == 1


def test_what_is_remembered_of_a_reply_is_as_small_for_a_long_one(service, onnx_model):
    sizes = set()
    for number, num_tokens in enumerate((2, 200)):
        answered(service, [*ids_of(onnx_model), 9 + number], options=options(num_tokens))
        remembered = service._starter._replies
        sizes.add(len(pickle.dumps(remembered.popitem()[1])))
    assert max(sizes) - min(sizes) < 8
    assert max(sizes) < 300


def test_states_stand_at_boundaries_and_every_so_many_tokens(onnx_model, store):
    service = GenerationService(onnx_model, store, num_slots=1, boundary_tokens=40)
    document = [onnx_model.tokenizer.bos_id, *range(10, 210)]
    end = answered(service, document, boundaries=(70, 75, 150, 900), options=options(1))
    # 70 is too close to 75, and the multiples 80, 120 and 160 to a boundary.
    assert set(end.state_ids) == {40, 75, 150, 200, 201}
    service.close()


class SlowStore(StateStore):
    """Puts nothing until it is told to, and perhaps fails then."""

    may_put, fault = threading.Event(), None

    def put(self, *arguments, **keywords):
        assert self.may_put.wait(60)
        if self.fault is not None:
            raise self.fault
        return super().put(*arguments, **keywords)


@pytest.fixture
def slow(onnx_model):
    with SlowStore(onnx_model, None, memory_bytes=1 << 24) as store:
        store.may_put, store.fault = threading.Event(), None
        service = GenerationService(onnx_model, store, num_slots=2, num_places=3)
        yield service, store
        store.may_put.set()
        service.close()


def test_an_end_is_told_once_its_states_are_kept_and_others_write_meanwhile(slow, onnx_model):
    service, store = slow
    service.submit(Job("a", ids_of(onnx_model), options(3)))
    other = service.submit(Job("a", ids_of(onnx_model), options(200), keep=False))
    events = []
    while service.counts.num_starts < 2:
        events += service.step()
    events += [event for _ in range(150) for event in service.step()]
    assert sum(isinstance(event, Piece) and event.job is other for event in events) > 100
    assert not any(isinstance(event, End) for event in events)
    assert service.memory().aside_bytes == 2 * service.state_bytes
    store.may_put.set()
    ends = [event for event in run(service) if isinstance(event, End)]
    assert len(ends) == 2
    assert {end.not_kept for end in ends} == {None}


def test_states_wait_in_their_slots_where_there_is_no_place(slow, onnx_model):
    service, store = slow
    jobs = [service.submit(Job("a", ids_of(onnx_model), options(3), num_answers=1)) for _ in range(4)]
    for _ in range(100):
        assert not any(isinstance(event, End) for event in service.step())
        assert service.memory().aside_bytes <= 2 * service.state_bytes
    assert service.num_free_slots == 0
    store.may_put.set()
    ends = [event for event in run(service) if isinstance(event, End)]
    assert {end.job for end in ends} == set(jobs)
    assert all(end.end_state_id for end in ends)
    assert service.memory().aside_bytes == 0


def test_a_store_that_fails_costs_the_states_and_not_the_answer(slow, onnx_model):
    service, store = slow
    store.fault = StoreError("the disk is full")
    store.may_put.set()
    end = answered(service, ids_of(onnx_model))
    assert len(end.token_ids) == 12
    assert (end.not_kept, end.end_state_id, end.prompt_state_id) == ("the disk is full", None, None)
    assert service.counts.num_states_not_kept == 2


@pytest.mark.parametrize("method", ["put", "get", "get_longest_prefix"])
def test_whatever_a_store_raises_costs_no_other_answer(slow, onnx_model, monkeypatch, method):
    service, store = slow
    store.may_put.set()
    document = ids_of(onnx_model)
    first = answered(service, document)

    def fail(*arguments, **keywords):
        raise MemoryError

    monkeypatch.setattr(type(store), method, fail)
    jobs = [
        Job("a", document, options(), keep=False),
        Job("a", [*document, 9], options()),
        Job("a", [9], options(), state_id=first.end_state_id),
    ]
    for job in jobs:
        service.submit(job)
    ends = {event.job: event for event in run(service) if isinstance(event, End)}
    assert ends[jobs[0]].token_ids == first.token_ids
    assert len(ends[jobs[1]].token_ids) == 12
    assert (ends[jobs[1]].not_kept is None) == (method != "put")
    assert (ends[jobs[2]].error is None) == (method != "get")
    assert service.counts.num_failed_lookups == (0 if method == "put" else 2)
    assert (service.num_free_slots, service.memory().aside_bytes) == (2, 0)


def test_a_prompt_is_read_on_while_the_store_is_slow(slow, onnx_model, monkeypatch):
    service, _ = slow
    service.submit(Job("a", ids_of(onnx_model), None))
    service.step()
    service.submit(Job("a", [5] * 3000, options(1), keep=False))
    while service.counts.num_starts < 2:
        service.step()
    monkeypatch.setattr(service._keeper, "wait", lambda *_: pytest.fail("it waited for the store"))
    events = []
    while not events:
        events = service.step(1.0)
    assert len(events[0].token_ids) == 1


def test_a_cancelled_job_leaves_nothing(service, onnx_model):
    for num_steps in (0, 1, 2, 5):
        job = service.submit(Job("a", ids_of(onnx_model), options(50), num_answers=3))
        for _ in range(num_steps):
            service.step(0.05)
        assert service.cancel(job)
        assert not service.cancel(job)
        assert not any(event.job is job for event in run(service))
        assert service.num_free_slots == 2
    service.close()
    assert service.memory().aside_bytes == 0


def test_more_answers_than_slots_and_queue_take_are_refused_before_any_is_made(onnx_model, monkeypatch):
    service = GenerationService(onnx_model, None, num_slots=2, max_waiting=3)
    with pytest.raises(GriffinError, match="6 answers are asked for at once; at most 5 can be taken"):
        service.submit(Job("a", [9], options(), num_answers=6))
    monkeypatch.setattr("griffinlm.generation.running.new_completion", lambda *_: pytest.fail("an answer was made"))
    with pytest.raises(GriffinError, match="60000 answers are asked for at once; at most 5 can be taken"):
        service.submit(Job("a", [9], options(), num_answers=60_000))
    assert not service.busy
    service.close()


def test_a_job_that_is_let_end_ends_with_what_it_has(service, store, onnx_model):
    document = ids_of(onnx_model)
    writes = service.submit(Job("a", document, options(50)))
    events = []
    while sum(isinstance(event, Piece) for event in events) < 4:
        events += service.step(0.05)
    waits = [service.submit(Job("a", [*document, 9 + number], options(50))) for number in range(3)]
    goes_on = service.submit(Job("a", document, options(6)))
    for job in (writes, *waits):
        service.let_end(job)
    ends = {event.job: event for event in run(service) if isinstance(event, End)}
    alone = onnx_model.generate(document, max_tokens=50, min_tokens=50, seed=5)
    assert {ends[job].finish_reason for job in (writes, *waits)} == {"deadline"}
    assert 4 <= len(ends[writes].token_ids) < 50
    assert ends[writes].token_ids == alone.token_ids[: len(ends[writes].token_ids)]
    assert store.get("a", ends[writes].end_state_id).arrays["pending"] == ends[writes].token_ids[-1]
    assert {tuple(ends[job].token_ids) for job in waits} == {()}
    assert (ends[goes_on].finish_reason, ends[goes_on].token_ids) == ("length", alone.token_ids[:6])
    service.let_end(writes)
    assert not service.busy


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_is_extracted_is_from_the_state_before_the_last_token(service, onnx_model, is_kept):
    document, given = ids_of(onnx_model), []

    def take(arrays):
        given.append({name: array.copy() for name, array in arrays.items()})
        return len(given)

    for _ in range(2):
        ends = [
            answered(service, document, options=None, extract=take, keep=is_kept),
            answered(service, document, extract=take, keep=is_kept),
        ]
    assert [end.extracted for end in ends] == [3, 4]
    expected = onnx_model.read(document[:-1]).arrays()
    for arrays in given:
        assert arrays.keys() == expected.keys()
        for name, array in arrays.items():
            np.testing.assert_allclose(array.astype(np.float64), expected[name].astype(np.float64), atol=2e-5)


def test_a_document_of_which_a_state_has_read_all_but_the_last_token_is_extracted_from_too(service, onnx_model):
    document = ids_of(onnx_model)
    first = answered(service, document)
    end = answered(service, document, extract=lambda arrays: int(arrays["num_tokens"][0]))
    assert end.usage.num_cached_tokens == len(document) - 1
    assert end.extracted == len(document) - 1
    on = answered(service, [], state_id=first.end_state_id, extract=lambda arrays: int(arrays["num_tokens"][0]))
    assert on.extracted == len(document) + len(first.token_ids) - 1


def test_a_full_queue_refuses_with_the_time_to_wait(onnx_model):
    service = GenerationService(onnx_model, None, num_slots=1, max_waiting=0)
    service.submit(Job("a", ids_of(onnx_model), options(50)))
    for _ in range(3):
        service.step()
    with pytest.raises(QueueFullError) as full:
        service.submit(Job("a", [9], options()))
    assert full.value.seconds > 0
    assert len(run(service)) > 1
    service.close()


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_deadline_ends_an_answer_with_what_it_has(onnx_model, store, seconds):
    clock = Clock()
    service = GenerationService(onnx_model, store, num_slots=1, clock=clock)
    job = service.submit(Job("a", ids_of(onnx_model), options(50), timeout_seconds=seconds))
    events = []
    while service.busy:
        events += service.step(0.05)
        clock.now += 0.05
    end = events[-1]
    assert (end.job, end.finish_reason) == (job, "deadline")
    alone = onnx_model.generate(ids_of(onnx_model), max_tokens=50, min_tokens=50, seed=5)
    assert end.token_ids == alone.token_ids[: len(end.token_ids)]
    assert (end.end_state_id is not None) == bool(end.token_ids)
    service.close()


def test_a_deadline_between_document_and_last_token_leaves_that_token_pending(onnx_model, store):
    clock, document = Clock(), ids_of(onnx_model)
    service = GenerationService(onnx_model, store, num_slots=1, clock=clock)

    def let_time_pass(_):
        clock.now += 100.0

    end = answered(service, document, extract=let_time_pass, timeout_seconds=50.0)
    assert (end.finish_reason, end.token_ids, end.end_state_id) == ("deadline", [], None)
    assert store.get("a", end.prompt_state_id).arrays["pending"] == document[-1]
    assert len(store.ids("a")) == 1
    service.close()


def test_a_model_with_a_capacity_keeps_and_refuses_in_time(tiny_gemma_directory):
    gemma = griffinlm.load(tiny_gemma_directory, engine="onnx", weights="float32", threads=1)
    with StateStore(gemma, None, memory_bytes=1 << 24) as store:
        service = GenerationService(gemma, store, num_slots=2, capacity=64)
        end = answered(service, [5, 6, 7])
        on = answered(service, [8], state_id=end.end_state_id)
        assert on.usage.num_cached_tokens == 14
        whole = gemma.generate([5, 6, 7, *end.token_ids, 8], max_tokens=12, min_tokens=12, seed=5)
        assert on.token_ids == whole.token_ids
        with pytest.raises(GriffinError, match="may reach 65 tokens; the capacity is 64"):
            service.submit(Job("a", [5] * 53, options()))
        late = answered(service, [5] * 40, state_id=end.end_state_id)
        assert "may reach 67 tokens" in str(late.error)
        service.close()


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("capacity", [32, 128])
def test_states_kept_with_another_capacity_are_gone_on_from(tiny_gemma_directory, engine, capacity):
    gemma = griffinlm.load(tiny_gemma_directory, engine=engine, weights="float32", threads=1)
    with StateStore(gemma, None, memory_bytes=1 << 24) as store:
        service = GenerationService(gemma, store, num_slots=1, capacity=64)
        first = answered(service, [5, 6, 7])
        job = service.submit(Job("a", [5, 6, 7], options()))
        for _ in range(8):
            service.step(0.05)
        suspended = service.suspend(job)
        service.close()
        other = GenerationService(gemma, store, num_slots=1, capacity=capacity)
        whole = gemma.generate([5, 6, 7, *first.token_ids, 8], max_tokens=12, min_tokens=12, seed=5)
        for token_ids, state_id in (([8], first.end_state_id), ([5, 6, 7, *first.token_ids, 8], None)):
            end = answered(other, token_ids, state_id=state_id)
            assert (end.token_ids, end.usage.num_cached_tokens > 3) == (whole.token_ids, True)
        assert end_of(other, other.resume(suspended, "b")).token_ids == first.token_ids
        other.close()


def test_what_cannot_be_run_is_refused_in_one_line(service, onnx_model):
    for job, words in (
        (Job("a", []), "no tokens"),
        (Job("a", [10_000]), "token id 10000"),
        (Job("a", [1.5]), "token_ids of a job must be whole numbers"),
        (Job("a", [5], boundaries=["x"]), "boundaries of a job must be whole numbers"),
        (Job("a", [5], prompt_log_probabilities=-1), "prompt_log_probabilities is -1"),
        (Job("", [5]), "tenant '' cannot be"),
        (Job("a\nb", [5]), "tenant 'a.*b' cannot be; it must be 1 to 200 printable characters"),
        (Job("a" * 201, [5]), "tenant 'a+...' cannot be"),
        (Job(7, [5]), "tenant 7 cannot be"),
        (Job("a", [5], num_answers=0), "0 answers"),
        (Job("a", [5], None, num_answers=2), "2 answers"),
        (Job("a", [5], num_answers=2**70), "answers; it must be 1 to 65536"),
        (Job("a", [5], adapter="none such"), "none such"),
        (Job("a", [5], options(capacity=9)), "capacity is 9"),
        (Job("a", [5], options(), timeout_seconds=-1.0), "timeout_seconds is -1.0"),
        (Job("a", [5], options(), timeout_seconds=float("nan")), "timeout_seconds is nan"),
        (Job("a", [5], options(), timeout_seconds="x"), "timeout_seconds is 'x'"),
        (Job("a", [5], options(seed=2**63 - 1), num_answers=2), "seed is"),
    ):
        with pytest.raises(GriffinError, match=words) as caught:
            service.submit(job)
        assert "\n" not in str(caught.value)
    assert not service.busy
    with pytest.raises(GriffinError, match="no store"):
        GenerationService(onnx_model, num_slots=1).submit(Job("a", [5], state_id="x"))
    with pytest.raises(GriffinError, match="num_slots is 0"):
        GenerationService(onnx_model, num_slots=0)
