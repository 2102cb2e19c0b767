"""Whatever comes, stops and goes on in whatever order: every answer is the one written alone, and nothing leaks."""

from fake_executor import END, Clock, FakeExecutor, babble, said_alone
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.scheduler import Scheduler

NUM_SLOTS = st.integers(1, 4)
PROMPT_LENGTHS = st.one_of(st.integers(1, 9), st.sampled_from([40, 511, 512, 513, 1200]))


class Traffic:
    """A scheduler, the conversations that it was given, and what each has said."""

    def __init__(self, data, num_slots):
        self.draw = data.draw
        self.clock = Clock()
        self.executor = FakeExecutor(num_slots, self.clock, 0.01, self.draw(st.sampled_from([0.0, 0.001, 0.01])))
        self.scheduler = Scheduler(self.executor, list, max_waiting=4, clock=self.clock)
        self.conversations = []
        """Each: the request running or stopped last, how it began, what it has said, what it left once it stopped."""

    def submit(self):
        prompt = [self.draw(st.integers(1, 39))] * self.draw(PROMPT_LENGTHS)
        before = self.draw(st.lists(st.integers(1, 39), max_size=3))
        state = {"read": before} if before else None
        options = {
            "priority": self.draw(st.integers(0, 2)),
            "timeout_seconds": self.draw(st.sampled_from([None, None, 0.1, 1.0])),
            "max_tokens": self.draw(st.integers(1, 12)),
        }
        group = [
            babble(prompt, seed, state=state, **options) for seed in range(self.draw(st.sampled_from([1, 1, 1, 2, 5])))
        ]
        try:
            self.scheduler.submit_group(group)
        except QueueFullError:
            return
        for seed, request in enumerate(group):
            self.conversations.append(
                {"now": request, "seed": seed, "first": request, "before": before, "said": [], "left": None}
            )

    def step(self):
        for event in self.scheduler.step():
            (one,) = [c for c in self.conversations if c["now"] is event.request]
            assert one["left"] is None
            assert event.error is None
            if event.token is not None:
                one["said"].append(event.token)
            one["left"] = event.remainder
            assert (event.remainder is None) == (event.finish_reason is None)
        holding = sum(group.read_prompt is not None for group in self.scheduler._waiting)
        assert holding <= 1

    def suspend(self):
        if self.conversations:
            one = self.draw(st.sampled_from(self.conversations))
            remainder = self.scheduler.cancel(one["now"])
            assert (remainder is None) == (one["left"] is not None)
            one["left"] = one["left"] or remainder

    def resume(self, one):
        resumed = one["now"].resumed(one["left"])
        try:
            self.scheduler.submit(resumed)
        except QueueFullError:
            return
        one["now"], one["left"] = resumed, None

    def resume_one(self):
        if self.stopped():
            self.resume(self.draw(st.sampled_from(self.stopped())))

    def stopped(self):
        """Those that ended before their answer did."""
        return [c for c in self.conversations if c["left"] is not None and not self.is_written(c)]

    def is_written(self, one):
        return bool(one["said"]) and (one["said"][-1] == END or len(one["said"]) == one["first"].max_tokens)

    def check(self, one):
        first = one["first"]
        expected = said_alone(first.prompt, one["seed"], first.max_tokens, one["before"])
        assert one["said"] == expected
        assert one["left"].state == {"read": [*one["before"], *first.prompt, *expected[:-1]]}
        assert one["left"].unread == expected[-1:]


@given(data=st.data(), num_slots=NUM_SLOTS)
def test_every_answer_equals_the_one_written_alone(data, num_slots):
    traffic = Traffic(data, num_slots)
    choices = st.sampled_from(["submit", "step", "step", "step", "suspend", "resume_one"])
    for _ in range(data.draw(st.integers(1, 60))):
        getattr(traffic, data.draw(choices))()
    while traffic.scheduler.busy or traffic.stopped():
        for one in traffic.stopped():
            traffic.resume(one)
        traffic.step()
    for one in traffic.conversations:
        traffic.check(one)
    scheduler = traffic.scheduler
    assert scheduler.num_free_slots == num_slots
    assert traffic.executor.read == {slot: [] for slot in range(num_slots)}
    assert [*scheduler._waiting, *scheduler._reading, *scheduler._writing, *scheduler._deadlines] == []


@given(data=st.data(), num_slots=NUM_SLOTS)
def test_everything_cancelled_leaves_every_slot_empty(data, num_slots):
    traffic = Traffic(data, num_slots)
    for _ in range(data.draw(st.integers(1, 30))):
        getattr(traffic, data.draw(st.sampled_from(["submit", "step"])))()
    for one in traffic.conversations:
        traffic.scheduler.cancel(one["now"])
    assert not traffic.scheduler.busy
    assert traffic.scheduler.num_waiting == 0
    assert traffic.scheduler.num_free_slots == num_slots
    assert traffic.executor.read == {slot: [] for slot in range(num_slots)}
