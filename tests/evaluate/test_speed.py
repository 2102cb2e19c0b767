"""The benchmark measures what it says: its traffic is that of the stored arrays, its path that of generating text."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

import griffinlm
from griffinlm.checkpoint import Checkpoint, open_checkpoint
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.evaluate import benchmark_weights, speed
from griffinlm.evaluate.bandwidth import read_bandwidth
from griffinlm.evaluate.benchmark_weights import model_checkpoint, random_checkpoint
from griffinlm.evaluate.own_process import in_own_process, peak_resident_bytes
from griffinlm.evaluate.speed import NUM_STEPS_DISCARDED, Figure, Subject, Workload, measure_speed, step_seconds
from griffinlm.state import check_layout, state_layout

BANDWIDTH = 1e12


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Random weights and quantized copies of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache of one test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def known_bandwidth(monkeypatch):
    """Bandwidths that the benchmark finds, one a measurement, the last again and again."""
    found = [BANDWIDTH]
    monkeypatch.setattr(speed, "read_bandwidth", lambda threads: found.pop(0) if len(found) > 1 else found[0])
    return found


def subject(preset: str, engine: str = "onnx", weights: str = "int8", window_dtype: str | None = None) -> Subject:
    checkpoint = random_checkpoint(preset, engine, weights)
    model = griffinlm.load(checkpoint.path, engine=engine, weights=weights, window_dtype=window_dtype, threads=1)
    return Subject(preset, engine, model.engine, checkpoint, 1)


class Recorder:
    """An engine whose executor notes its calls: how many tokens each slot had read, and how many it was given."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self.config, self.precision, self.window_dtype = engine.config, engine.precision, engine.window_dtype
        self.calls: list[tuple[str, list[int], list[int], int]] = []

    def executor(self, num_slots, capacity=None):
        self._executor = self._engine.executor(num_slots, capacity)
        self.num_slots, self.capacity = num_slots, capacity
        return self

    def import_state(self, slot, arrays):
        self._executor.import_state(slot, arrays)

    def prefill(self, slots, tokens, positions, logits):
        self._note(f"prefill {logits}", slots, tokens.shape[1])
        return self._executor.prefill(slots, tokens, positions, logits)

    def step(self, slots, tokens):
        self._note("step", slots, 1)
        return self._executor.step(slots, tokens)

    def _note(self, name, slots, num_tokens):
        read = [int(self._executor.export_state(slot)["num_tokens"][0]) for slot in slots]
        self.calls.append((name, list(slots), read, num_tokens))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
@pytest.mark.parametrize("position", [0, 5, 1000])
def test_decoding_steps_all_rows_on_from_the_position(engine, position):
    recorder = Recorder(subject("tiny-griffin", engine, "float32").engine)
    seconds = step_seconds(recorder, Workload("decode", (position,), rows=3, tokens=4), position)
    assert len(seconds) == 4
    prompts, steps = recorder.calls[:3], recorder.calls[3:]
    assert prompts == [("prefill last", [slot], [position], 1) for slot in range(3)]
    expected = [("step", [0, 1, 2], [position + 1 + n] * 3, 1) for n in range(NUM_STEPS_DISCARDED + 4)]
    assert steps == expected


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_prefill_reads_every_prompt_from_the_position_and_asks_for_its_last_logits(engine):
    recorder = Recorder(subject("tiny-griffin", engine, "float32").engine)
    seconds = step_seconds(recorder, Workload("prefill", (20,), rows=2, tokens=600), 20)
    once = [("prefill none", [slot], [20], 512) for slot in (0, 1)]
    once += [("prefill last", [slot], [532], 88) for slot in (0, 1)]
    assert len(seconds) == speed.NUM_PROMPTS_TIMED
    assert recorder.calls == once * (speed.NUM_PROMPTS_DISCARDED + speed.NUM_PROMPTS_TIMED)


def test_rows_are_conversations_of_their_own():
    """Every row starts from the same state; prompts and draws are its own, and the same whenever they are made."""

    def written() -> list[list[int]]:
        engine = subject("tiny-griffin").engine
        executor = engine.executor(3)
        scheduler = speed._scheduler(executor, engine.config, 0, 1, 6)
        rows: dict = {}
        while not rows or min(map(len, rows.values())) < 6:
            for event in scheduler.step():
                rows.setdefault(event.request, []).append(event.token)
        return list(rows.values())

    first = written()
    assert [len(row) for row in first] == [6, 6, 6]
    assert len({tuple(row) for row in first}) == 3
    assert first == written()


@pytest.mark.parametrize("window_dtype", ["float32", "float16", "int8"])
def test_the_state_of_a_position_is_one_that_the_executor_continues(window_dtype):
    engine = subject("tiny-griffin", window_dtype=window_dtype).engine
    state = speed.random_state(state_layout(engine.config, 1, None, window_dtype, "float32"), 100_000)
    executor = engine.executor(1)
    executor.import_state(0, state)
    assert np.isfinite(executor.step([0], [1])).all()
    assert executor.export_state(0)["num_tokens"] == 100_001


def test_the_state_of_a_position_of_a_model_that_skips_can_be():
    model = griffinlm.load("eyas-recursive")
    layout = state_layout(model.config, 1, None, model.window_dtype, model.precision)
    check_layout(speed.random_state(layout, 1000), model, "the state")


def test_global_attention_has_room_for_exactly_what_is_read():
    engine = subject("tiny-gemma").engine
    for command, rows in (("decode", 2), ("prefill", 1)):
        workload = Workload(command, (30,), rows, tokens=5)
        assert workload.capacity(engine.config, 30) == 30 + NUM_STEPS_DISCARDED + 5 + 1
        assert len(step_seconds(engine, workload, 30)) > 0


def test_figures_follow_from_the_median_and_the_bytes(known_bandwidth, monkeypatch):
    known_bandwidth[:] = [2e9, 4e9, 3e9]
    monkeypatch.setattr(speed, "step_seconds", lambda engine, workload, position: [1.0, 0.25, 0.5])
    one = subject("tiny-griffin")
    first, second = measure_speed(one, Workload("decode", (3, 1000), rows=4, tokens=3))
    assert (first.position, second.position) == (3, 1000)
    assert (first.ms_per_token, first.tokens_per_second) == (500.0, 8.0)
    assert (first.bandwidth_bytes_per_second, second.bandwidth_bytes_per_second) == (4e9, 4e9)
    assert second.bandwidth_share == pytest.approx(second.bytes_per_token / 0.5 / 4e9, rel=1e-4)
    (prompt,) = measure_speed(one, Workload("prefill", (0,), rows=2, tokens=100))
    assert (prompt.ms_per_token, prompt.tokens_per_second) == (5.0, 400.0)
    assert prompt.bandwidth_share == pytest.approx(prompt.bytes_per_token * 100 / 0.5 / 3e9, rel=1e-2)


def test_bytes_are_weights_once_and_the_state_in_use_of_every_row(known_bandwidth):
    config = ModelConfig.preset("tiny-griffin")
    one = subject("tiny-griffin", weights="int8-block16")
    figures = list(measure_speed(one, Workload("decode", (0, 3, 50), rows=2, tokens=1)))
    # 4 recurrent layers of 40 (1 + 3) float32, one ring of 7 slots of 16 float32 keys and values.
    recurrent, slot = 4 * 40 * 4 * 4, 2 * 16 * 4
    embedding_row = 32 + 2 * 4
    weights = one.checkpoint.num_bytes
    assert [f.bytes_per_token - weights for f in figures] == [
        2 * (embedding_row + recurrent + n * slot) for n in (0, 3, 7)
    ]
    assert [f.state_bytes for f in figures] == [2 * (recurrent + 7 * slot + 16)] * 3
    assert {f.weight_file_bytes for f in figures} == {weights}
    floats = subject("tiny-griffin", weights="float32")
    (figure,) = measure_speed(floats, Workload("decode", (0,), rows=1, tokens=1))
    assert figure.bytes_per_token == 4 * config.num_parameters + 4 * 32 + recurrent


def test_torch_reads_weights_in_its_precision(known_bandwidth):
    for weights, size in (("float32", 4), ("bfloat16", 2)):
        one = subject("tiny-hawk", "torch", weights)
        (figure,) = measure_speed(one, Workload("decode", (0,), rows=1, tokens=1))
        assert (figure.engine, figure.weights, figure.window_dtype) == ("torch", weights, weights)
        hidden_and_taps = 3 * 40 * (4 + 3 * size)
        assert figure.bytes_per_token == size * (one.checkpoint.config.num_parameters + 32) + hidden_and_taps


def test_state_bytes_are_those_of_a_state_of_the_model(known_bandwidth):
    one = subject("tiny-gemma")
    workload = Workload("batch", (10,), rows=3, tokens=2)
    (figure,) = measure_speed(one, workload)
    model = griffinlm.load(one.checkpoint.path, engine="onnx")
    assert figure.state_bytes == model.new_state(3, workload.capacity(model.config, 10)).nbytes


def test_every_figure_is_a_number_or_a_name(known_bandwidth):
    (figure,) = measure_speed(subject("tiny-griffin"), Workload("batch", (0,), rows=2, tokens=2))
    for field in dataclasses.fields(Figure):
        value = getattr(figure, field.name)
        assert type(value) is field.type, field.name
        assert value > 0 or field.name == "position" if field.type is not str else value


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (("dekode", (0,), 1, 1), "the measure is 'dekode'"),
        (("decode", (), 1, 1), "positions is empty"),
        (("decode", (0, -1), 1, 1), "positions is -1"),
        (("decode", (1 << 60,), 1, 1), f"positions is {1 << 60}"),
        (("decode", (0,), 0, 1), "rows is 0"),
        (("decode", (0,), 1, 0), "tokens is 0"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(values, words):
    with pytest.raises(GriffinError, match=words):
        Workload(*values)


def test_states_that_do_not_fit_are_refused_with_the_numbers():
    position = 1 << 39
    with pytest.raises(GriffinError, match=r"the state of 2 conversations at position 549755813888 needs [\d,]+ MB"):
        step_seconds(subject("tiny-gemma").engine, Workload("decode", (position,), 2, 1), position)


def test_random_weights_are_written_once_and_are_what_was_asked_for(empty_cache):
    for engine, weights, types in (
        ("onnx", "int4", ("float32", "int4-block128", "int4-block16", "int4-block32", "int4-block64")),
        ("onnx", "float32", ("float32",)),
        ("torch", "bfloat16", ("bfloat16",)),
    ):
        first = random_checkpoint("tiny-griffin", engine, weights)
        assert set(first.types) <= set(types)
        assert first.config == ModelConfig.preset("tiny-griffin")
        written = max(file.stat().st_mtime_ns for file in first.path.iterdir())
        again = random_checkpoint("tiny-griffin", engine, weights)
        assert again.path == first.path
        assert max(file.stat().st_mtime_ns for file in again.path.iterdir()) == written


def test_the_size_that_is_asked_of_the_disk_is_that_of_the_files():
    config = ModelConfig.preset("tiny-griffin")
    for weights in ("int4", "int8", "int8-block32", "float32"):
        recipe = None if weights == "float32" else benchmark_weights.recipe_of(weights)
        expected = random_checkpoint("tiny-griffin", "onnx", weights).num_bytes
        assert benchmark_weights._num_bytes(config, recipe, weights) == expected


def test_without_a_cache_random_weights_live_as_long_as_the_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoint: Checkpoint | None = random_checkpoint("tiny-hawk", "onnx", "int8")
    path = checkpoint.path
    assert open_checkpoint(path).config == checkpoint.config
    del checkpoint
    assert not path.exists()


def test_random_weights_that_find_no_room_are_refused(empty_cache, monkeypatch):
    monkeypatch.setattr(benchmark_weights, "LARGEST_SHARE_OF_DISK", 0.0)
    with pytest.raises(GriffinError, match="random weights need 0 MB of disk"):
        random_checkpoint("tiny-hawk", "onnx", "int8")


def test_a_directory_of_another_model_under_the_name_of_a_preset_is_refused(empty_cache):
    place, other = (random_checkpoint(name, "onnx", "int8").path for name in ("tiny-griffin", "tiny-hawk"))
    shutil.rmtree(place)
    other.rename(place)
    with pytest.raises(GriffinError, match="another model than preset tiny-griffin"):
        random_checkpoint("tiny-griffin", "onnx", "int8")


def test_a_float_model_is_measured_by_its_quantized_copy(tiny_model_directory):
    own = model_checkpoint(str(tiny_model_directory), "onnx", None)
    copy = model_checkpoint(str(tiny_model_directory), "onnx", "int4-block32")
    assert own.quantization is None
    assert copy.quantization is not None
    assert benchmark_weights.weights_run(copy, "onnx", "float32") == "int4-block32"
    assert model_checkpoint(str(copy.path), "onnx", "int8").path == copy.path


def test_bandwidth_is_measured_in_a_process_of_its_own():
    before = peak_resident_bytes()
    assert read_bandwidth(threads=2, num_bytes=1 << 28) > 0
    assert peak_resident_bytes() - before < 1 << 27


def test_memory_taken_and_given_back_counts_as_the_peak():
    before = peak_resident_bytes()
    num_bytes = before + (1 << 26)
    np.ones(num_bytes, np.uint8)
    assert peak_resident_bytes() >= num_bytes


def test_faults_in_an_own_process_are_faults_here():
    with pytest.raises(GriffinError, match="no preset is called 'x'"):
        in_own_process(ModelConfig.preset, "x")
    with pytest.raises(GriffinError, match="the process of _exit was killed"):
        in_own_process(os._exit, 9)
