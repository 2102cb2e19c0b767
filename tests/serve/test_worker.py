"""The thread between the event loop and the service."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from griffinlm.generation.job import End, Job, Piece, Usage
from griffinlm.generation.queue import QueueFullError
from griffinlm.serve import worker as worker_module
from griffinlm.serve.errors import ApiError
from griffinlm.serve.served import Asker
from griffinlm.serve.worker import MOST_EVENTS_WAITING, Answers, Worker


class FakeService:
    """Says "x" in every step for every job, until it fails or is told to."""

    def __init__(self, num_pieces=3, fails=False):
        self.jobs, self.cancelled, self.num_pieces, self.fails = {}, [], num_pieces, fails
        self.is_closed = False
        self.num_free_slots, self.num_waiting = 1, 0
        self.did = []
        """Submits and steps, in their order."""
        self.read_on = None
        """The event loop that reads on between two steps, however busy the machine; None leaves it to chance."""

    @property
    def busy(self):
        return bool(self.jobs)

    def submit(self, job):
        self.did.append("submit")
        self.jobs[job] = self.num_pieces

    def cancel(self, job):
        self.cancelled.append(job)
        self.jobs.pop(job, None)

    def expected_seconds(self):
        return 7.0

    def step(self, timeout_seconds):
        self.did.append("step")
        if self.fails and self.jobs:
            raise RuntimeError("a fault")
        if self.read_on is not None:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self.read_on).result()
        told = []
        for job, num_left in list(self.jobs.items()):
            if num_left == 0:
                del self.jobs[job]
                told.append(End(job, 0, "stop", "", [], None, None, Usage(1, 0, 1)))
            else:
                self.jobs[job] = num_left - 1
                told.append(Piece(job, 0, "x", [1], None))
        return told

    def close(self):
        self.is_closed = True


def run(service, work, **options):
    async def main():
        worker = Worker(service, **options)
        worker.start()
        try:
            return await work(worker)
        finally:
            await worker.stop()

    # In a thread of its own: a browser's test in the same process leaves a loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(asyncio.run, main()).result()
    assert service.is_closed
    return found


def test_events_come_in_order_until_the_end():
    async def work(worker):
        answers = await worker.submit(Job("a", [1]))
        return [type(told).__name__ async for told in answers]

    assert run(FakeService(), work) == ["Piece", "Piece", "Piece", "End"]


def test_who_reads_too_slowly_is_cut_off_and_its_job_ended():
    service = FakeService(num_pieces=10**9)

    async def work(worker):
        answers = await worker.submit(Job("a", [1]))
        while not answers.is_over:
            await asyncio.sleep(0)
        with pytest.raises(ApiError, match="too slowly"):
            [told async for told in answers]
        while not service.cancelled:
            await asyncio.sleep(0)
        return answers.job

    assert service.cancelled == [run(service, work)]
    assert MOST_EVENTS_WAITING > 0


def test_as_many_events_may_wait_of_each_answer_of_a_job():
    async def work(worker):
        left = []
        answers = Answers(Job("a", [1], num_answers=3), left.append)
        for number in range(3 * MOST_EVENTS_WAITING):
            answers.push(Piece(answers.job, number % 3, "x", [1], None))
        assert not answers.is_over
        answers.push(Piece(answers.job, 0, "x", [1], None))
        assert left == [answers]

    run(FakeService(), work)


def test_left_answers_are_cancelled_and_others_go_on():
    service = FakeService(num_pieces=10**9)

    async def work(worker):
        left, kept = await worker.submit(Job("a", [1])), await worker.submit(Job("a", [1]))
        left.leave()
        while not service.cancelled:
            await asyncio.sleep(0)
        async for told in kept:
            assert told.job is kept.job
            break
        return left.job

    assert service.cancelled == [run(service, work)]


def test_a_tenant_has_its_share_and_no_more():
    async def work(worker):
        await worker.submit(Job("a", [1], num_answers=2))
        with pytest.raises(QueueFullError) as caught:
            await worker.submit(Job("a", [1]))
        await worker.submit(Job("b", [1]))
        return caught.value.seconds

    assert run(FakeService(num_pieces=10**9), work, most_per_tenant=2) == 7.0


def test_what_no_client_asked_for_takes_nothing_of_a_tenants_share():
    async def work(worker):
        await worker.submit(Job("a", [1]), is_asked_for=False)
        await worker.submit(Job("a", [1], num_answers=2))
        await worker.submit(Job("a", [1]), is_asked_for=False)

    run(FakeService(num_pieces=10**9), work, most_per_tenant=2)


@pytest.mark.parametrize(
    ("num_free", "num_waiting", "is_taken"), [(1, 0, True), (2, 1, True), (0, 0, False), (1, 1, False), (0, 3, False)]
)
def test_what_no_client_asked_for_is_taken_where_a_slot_is_free_for_it(num_free, num_waiting, is_taken):
    service = FakeService()
    service.num_free_slots, service.num_waiting = num_free, num_waiting

    async def work(worker):
        try:
            await worker.submit(Job("a", [1]), is_asked_for=False)
        except QueueFullError as error:
            assert error.seconds == 7.0
        await worker.submit(Job("a", [1]))

    run(service, work)
    assert service.did.count("submit") == 1 + is_taken


def test_between_calls_that_take_long_those_that_write_get_their_token(monkeypatch):
    monkeypatch.setattr(worker_module, "CALLS_SECONDS", 0.0)
    service, gate = FakeService(num_pieces=10**9), threading.Event()

    async def work(worker):
        await worker.submit(Job("a", [1]))
        held = asyncio.ensure_future(worker.call(gate.wait))
        jobs = [asyncio.ensure_future(worker.submit(Job("a", [1]))) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(held, *jobs)

    run(service, work)
    submits = [place for place, what in enumerate(service.did) if what == "submit"]
    assert len(submits) == 4
    assert all(service.did[place - 1] == "step" for place in submits[1:])


def test_long_answers_to_several_prompts_are_read_side_by_side():
    service = FakeService(num_pieces=MOST_EVENTS_WAITING + 100)

    async def work(worker):
        service.read_on = asyncio.get_running_loop()
        served: Any = SimpleNamespace(submit=worker.submit)
        request: Any = None
        return await Asker(served, "a", request)._ends([Job("a", [1]), Job("a", [1])])

    assert [len(ends) for ends in run(service, work)] == [1, 1]


def test_a_fault_of_the_service_is_told_to_all_and_nothing_more_is_taken():
    async def work(worker):
        answers = await worker.submit(Job("a", [1]))
        with pytest.raises(ApiError) as caught:
            [told async for told in answers]
        with pytest.raises(ApiError) as refused:
            await worker.submit(Job("a", [1]))
        return worker.has_failed, caught.value.status, refused.value.status

    assert run(FakeService(fails=True), work) == (True, 500, 503)
