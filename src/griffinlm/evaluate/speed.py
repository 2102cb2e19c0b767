"""How fast a model reads and writes: the scheduler, samplers and executor of `generate`, timed from outside."""

import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import ModelConfig
from griffinlm.edge.memory import require_memory
from griffinlm.errors import GriffinError
from griffinlm.evaluate.bandwidth import read_bandwidth
from griffinlm.evaluate.benchmark_weights import weights_run
from griffinlm.evaluate.own_process import peak_resident_bytes
from griffinlm.evaluate.traffic import embedding_row_bytes, state_read_bytes, weight_bytes
from griffinlm.executor import Engine, Executor
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.request import Request
from griffinlm.generation.sampling import Sampler, choose_together
from griffinlm.generation.scheduler import Scheduler
from griffinlm.state import NOTHING_PENDING, ArraySpec, state_layout

COMMANDS = ("decode", "prefill", "batch")
DEFAULT_ROWS = {"decode": 1, "prefill": 1, "batch": 8}
DEFAULT_TOKENS = {"decode": 64, "prefill": 512, "batch": 64}
MOST_POSITION, MOST_ROWS, MOST_TOKENS = 1 << 39, 1 << 16, 1 << 20
NUM_STEPS_DISCARDED = 3
"""Steps before the first that counts: calls are made anew and caches filled in them."""
NUM_PROMPTS_DISCARDED, NUM_PROMPTS_TIMED = 1, 3
LARGEST_STATE_VALUE, LARGEST_WHOLE_NUMBER = 0.1, 100


class SpeedError(GriffinError):
    """A workload that cannot be measured."""


@dataclass(frozen=True)
class Workload:
    """What is timed."""

    command: str
    """`decode` and `batch`: writing tokens; `prefill`: reading a prompt up to the logits of its last token."""
    positions: tuple[int, ...]
    """Tokens that every conversation has read before."""
    rows: int
    """Conversations side by side."""
    tokens: int
    """Tokens of each row that are timed."""

    def __post_init__(self) -> None:
        if self.command not in COMMANDS:
            raise SpeedError(f"the measure is {self.command[:60]!r}; allowed are {', '.join(COMMANDS)}")
        if not self.positions:
            raise SpeedError("positions is empty; there must be at least one")
        for position in self.positions:
            _require("positions", position, 0, MOST_POSITION)
        _require("rows", self.rows, 1, MOST_ROWS)
        _require("tokens", self.tokens, 1, MOST_TOKENS)

    @property
    def tokens_of_a_step(self) -> int:
        """Tokens of each row that are read while the clock runs once."""
        return self.tokens if self.command == "prefill" else 1

    def capacity(self, config: ModelConfig, position: int) -> int | None:
        """Tokens that global attention needs room for; None where the state has a fixed size."""
        return position + NUM_STEPS_DISCARDED + self.tokens + 1 if config.needs_capacity else None


@dataclass(frozen=True)
class Figure:
    """What was found at one position. `tokens_per_second` is of all rows together, times are of one row's token."""

    command: str
    model: str
    engine: str
    weights: str
    window_dtype: str
    position: int
    rows: int
    tokens: int
    threads: int
    ms_per_token: float
    tokens_per_second: float
    bytes_per_token: int
    """Weights once, of the embedding the rows of the tokens beside it, and of every row the state in use; for a prompt
    all this by its tokens."""
    bandwidth_bytes_per_second: int
    """What the processor read before or after the measurement, whichever was more."""
    bandwidth_share: float
    peak_rss_bytes: int
    weight_file_bytes: int
    state_bytes: int
    """Of all rows."""


@dataclass(frozen=True)
class Subject:
    """A loaded model and what must be known of it."""

    name: str
    engine_name: str
    engine: Engine
    checkpoint: Checkpoint
    threads: int

    @property
    def is_packed(self) -> bool:
        """Whether quantized weights are multiplied as they are stored."""
        return self.engine_name == "onnx"


def measure_speed(subject: Subject, workload: Workload) -> Iterator[Figure]:
    """Measures at each position in turn, and the processor's read bandwidth around each.

    Raises:
        GriffinError: the states do not fit into memory.
    """
    before = read_bandwidth(subject.threads)
    for position in workload.positions:
        seconds = statistics.median(step_seconds(subject.engine, workload, position))
        peak_bytes = peak_resident_bytes()
        after = read_bandwidth(subject.threads)
        yield _figure(subject, workload, position, seconds, max(before, after), peak_bytes)
        before = after


def step_seconds(engine: Engine, workload: Workload, position: int) -> list[float]:
    """Seconds of every step that counts: one token of each row, or a whole prompt of each.

    Raises:
        NotEnoughMemoryError: the states would not fit.
    """
    capacity = workload.capacity(engine.config, position)
    layout = state_layout(engine.config, 1, capacity, engine.window_dtype, engine.precision)
    # The state that every slot is filled from is one more.
    num_bytes = (workload.rows + 1) * sum(spec.nbytes for spec in layout.values())
    require_memory(num_bytes, f"the state of {workload.rows} conversations at position {position}")
    executor = engine.executor(workload.rows, capacity)
    state = random_state(layout, position)
    if workload.command == "prefill":
        num_prompts = NUM_PROMPTS_DISCARDED + NUM_PROMPTS_TIMED
        found = [_prefill_seconds(executor, engine.config, workload, position, state) for _ in range(num_prompts)]
        return found[NUM_PROMPTS_DISCARDED:]
    _fill(executor, state)
    del state
    return _decode_seconds(executor, engine.config, workload, position)


def random_state(layout: dict[str, ArraySpec], position: int) -> dict[str, np.ndarray]:
    """A state of one row that has read `position` tokens, as `Executor.export_state` gives it, of small numbers."""
    random = np.random.default_rng(0)
    arrays = {name: _small_numbers(spec, random) for name, spec in layout.items()}
    arrays["num_tokens"] = np.array([position], np.int64)
    arrays["pending"] = np.array([NOTHING_PENDING], np.int64)
    if "num_skipped" in arrays:
        arrays["num_skipped"][:] = 0
    return arrays


def _small_numbers(spec: ArraySpec, random: np.random.Generator) -> np.ndarray:
    if spec.dtype.kind == "i":
        return random.integers(-LARGEST_WHOLE_NUMBER, LARGEST_WHOLE_NUMBER, spec.shape, spec.dtype)
    values = random.random(spec.shape, np.float32)
    values *= LARGEST_STATE_VALUE
    return values.astype(spec.dtype, copy=False)


def _fill(executor: Executor, state: dict[str, np.ndarray]) -> None:
    for slot in range(executor.num_slots):
        executor.import_state(slot, state)


def _scheduler(
    executor: Executor, config: ModelConfig, position: int, num_prompt_tokens: int, num_tokens: int
) -> Scheduler:
    """A request in every slot, each with a prompt and a seed of its own, that goes on from what the slot holds."""
    scheduler = Scheduler(executor, lambda ids: np.asarray([ids], np.int64), choose=choose_together)
    for slot in range(executor.num_slots):
        prompt = np.random.default_rng(slot).integers(0, config.vocab_size, num_prompt_tokens).tolist()
        sampler = Sampler(SamplingParameters(seed=slot), prompt, first_position=position + num_prompt_tokens)
        # One token more than is asked for: the last would export its state.
        scheduler.submit(Request(prompt, sampler, num_tokens + 1, frozenset()))
    return scheduler


def _decode_seconds(executor: Executor, config: ModelConfig, workload: Workload, position: int) -> list[float]:
    num_steps = NUM_STEPS_DISCARDED + workload.tokens
    scheduler = _scheduler(executor, config, position, 1, 1 + num_steps)
    scheduler.step()
    while scheduler.is_reading:
        scheduler.step()
    times = []
    for _ in range(num_steps):
        start = time.perf_counter()
        scheduler.step()
        times.append(time.perf_counter() - start)
    return times[NUM_STEPS_DISCARDED:]


def _prefill_seconds(
    executor: Executor, config: ModelConfig, workload: Workload, position: int, state: dict[str, np.ndarray]
) -> float:
    _fill(executor, state)
    scheduler = _scheduler(executor, config, position, workload.tokens, 1)
    start = time.perf_counter()
    num_read = 0
    while num_read < workload.rows:
        num_read += len(scheduler.step())
    return time.perf_counter() - start


def _figure(
    subject: Subject, workload: Workload, position: int, seconds: float, bandwidth: float, peak_bytes: int
) -> Figure:
    engine, config, rows = subject.engine, subject.engine.config, workload.rows
    num_tokens = workload.tokens_of_a_step
    read = weight_bytes(subject.checkpoint, engine, subject.is_packed)
    read += rows * num_tokens * embedding_row_bytes(subject.checkpoint, engine, subject.is_packed)
    read += rows * state_read_bytes(config, engine, position)
    capacity = workload.capacity(config, position)
    state = state_layout(config, rows, capacity, engine.window_dtype, engine.precision)
    return Figure(
        command=workload.command,
        model=subject.name,
        engine=subject.engine_name,
        weights=weights_run(subject.checkpoint, subject.engine_name, engine.precision),
        window_dtype=engine.window_dtype,
        position=position,
        rows=rows,
        tokens=workload.tokens,
        threads=subject.threads,
        ms_per_token=_rounded(1e3 * seconds / num_tokens),
        tokens_per_second=_rounded(rows * num_tokens / seconds),
        bytes_per_token=round(read / num_tokens),
        bandwidth_bytes_per_second=round(bandwidth),
        bandwidth_share=_rounded(read / seconds / bandwidth),
        peak_rss_bytes=peak_bytes,
        weight_file_bytes=subject.checkpoint.num_bytes,
        state_bytes=sum(spec.nbytes for spec in state.values()),
    )


def _rounded(value: float) -> float:
    """To five digits."""
    return round(value, 4 - math.floor(math.log10(value)))


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise SpeedError(f"{name} is {value}; it must be a whole number in {least}..{most}")
