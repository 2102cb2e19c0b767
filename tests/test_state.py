"""State as a file: saved and loaded it is the same; foreign, damaged or impossible it is refused in one line."""

import dataclasses
import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.config import ModelConfig
from griffinlm.state import Fingerprint, Identity, State, StateError, state_layout


@dataclasses.dataclass
class Model:
    config: ModelConfig
    precision: str = "float32"
    window_dtype: str = "float32"
    weights: str = "a" * 64
    tokenizer: str = "b" * 64

    def __post_init__(self):
        self.identity = Identity(lambda: Fingerprint(self.weights, self.precision, self.window_dtype, self.tokenizer))


def filled(model: Model, rows: int = 2, capacity: int | None = None, seed: int = 0) -> State:
    random = np.random.default_rng(seed)
    layout = state_layout(model.config, rows, capacity, model.window_dtype, model.precision)
    arrays = {n: random.standard_normal(s.shape).astype(s.dtype) for n, s in layout.items()}
    arrays["num_tokens"] = random.integers(1, 9, rows)
    arrays["pending"] = np.array([-1, 5][:rows])
    return State(arrays, model.identity)


GRIFFIN = Model(ModelConfig.preset("tiny-griffin"))


def equal(a: State, b: State) -> bool:
    return a.arrays().keys() == b.arrays().keys() and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(a.arrays().values(), (b.arrays()[n] for n in a.arrays()), strict=True)
    )


@pytest.mark.parametrize("window_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-hawk", "tiny-gemma"])
def test_saved_and_loaded_is_the_same(tmp_path, preset, window_dtype):
    model = Model(ModelConfig.preset(preset), window_dtype=window_dtype)
    state = filled(model, capacity=20 if model.config.needs_capacity else None)
    state.save(tmp_path / "s.state")
    assert equal(State.load(tmp_path / "s.state", model), state)
    assert os.listdir(tmp_path) == ["s.state"]


def test_bytes_of_recurrentgemma_are_the_published_ones():
    config = ModelConfig.preset("recurrentgemma-2b")
    layout = state_layout(config, 1, None, "bfloat16", "bfloat16")
    blocks = sum(spec.nbytes for name, spec in layout.items() if name not in ("num_tokens", "pending"))
    published_counters = 8 * 4
    assert blocks == 17_238_048 - published_counters
    assert sum(s.nbytes for s in layout.values()) - blocks == 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": "c" * 64}, "weights"),
        ({"precision": "bfloat16"}, "precision"),
        ({"window_dtype": "float16"}, "window_dtype"),
        ({"tokenizer": ""}, "tokenizer"),
    ],
)
def test_another_models_state_is_refused_by_what_differs(tmp_path, change, named):
    filled(GRIFFIN).save(tmp_path / "s")
    with pytest.raises(StateError, match=f"another model: {named} "):
        State.load(tmp_path / "s", dataclasses.replace(GRIFFIN, **change))


@given(data=st.data())
def test_every_changed_byte_is_noticed(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("state") / "s"
    filled(GRIFFIN).save(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = State.load(path, GRIFFIN)
    except StateError as error:
        assert "\n" not in str(error)
    else:
        # Only white space and escapes of the header may change without changing what it says.
        assert equal(loaded, filled(GRIFFIN))


@given(length=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_noticed(tmp_path_factory, length):
    path = tmp_path_factory.mktemp("state") / "s"
    filled(GRIFFIN).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * length)])
    with pytest.raises(StateError):
        State.load(path, GRIFFIN)


def resealed(path, change) -> None:
    """Rewrites a state file with changed arrays and a checksum that fits them."""
    state = filled(GRIFFIN)
    arrays = state.arrays()
    change(arrays)
    State(arrays, GRIFFIN.identity).save(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.pop("layers.0.hidden"),
        lambda a: a.update(extra=np.zeros((2, 3), np.float32)),
        lambda a: a.update({"layers.0.hidden": a["layers.0.hidden"].astype(np.float64)}),
        lambda a: a.update({"layers.2.keys": a["layers.2.keys"][:, :-1]}),
        lambda a: a.update(num_tokens=np.array([-1, 3])),
        lambda a: a.update(num_tokens=np.array(3)),
        lambda a: a.update(pending=np.array([-2, 3])),
        lambda a: a.update(pending=np.array([259, 3])),
        lambda a: a.clear(),
    ],
)
def test_a_well_sealed_file_with_impossible_content_is_refused(tmp_path, change):
    resealed(tmp_path / "s", change)
    with pytest.raises(StateError):
        State.load(tmp_path / "s", GRIFFIN)


def test_a_conversation_longer_than_its_capacity_is_refused(tmp_path):
    gemma = Model(ModelConfig.preset("tiny-gemma"))
    state = filled(gemma, rows=1, capacity=4)
    state.arrays()["num_tokens"][:] = 5
    State({**state.arrays(), "num_tokens": np.array([5])}, gemma.identity).save(tmp_path / "s")
    with pytest.raises(StateError, match="5 tokens in a capacity of 4"):
        State.load(tmp_path / "s", gemma)


@pytest.mark.parametrize(
    "metadata", [None, {}, {"griffinlm": "{}"}, {"griffinlm": "["}, {"griffinlm": json.dumps({"fingerprint": 1})}]
)
def test_other_safetensors_files_are_no_states(tmp_path, metadata):
    safetensors.numpy.save_file({"x": np.zeros(3)}, tmp_path / "s", metadata=metadata)
    with pytest.raises(StateError, match="no state file"):
        State.load(tmp_path / "s", GRIFFIN)


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(StateError, match="there is no state file"):
        State.load(tmp_path / "none", GRIFFIN)
    with pytest.raises(StateError):
        State.load(tmp_path, GRIFFIN)


def test_a_state_that_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "s"
    filled(GRIFFIN, seed=1).save(path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left on device"):
        filled(GRIFFIN, seed=2).save(path)
    assert os.listdir(tmp_path) == ["s"]
    assert equal(State.load(path, GRIFFIN), filled(GRIFFIN, seed=1))


def test_a_copy_and_a_row_live_on_their_own():
    state = filled(GRIFFIN)
    copied, row = state.copy(), state.row(1)
    state.arrays()["layers.0.hidden"][:] = 0
    assert copied.arrays()["layers.0.hidden"].any()
    assert row.rows == 1
    assert equal(State.stack([copied.row(0), copied.row(1)]), copied)
    assert copied.nbytes == 2 * row.nbytes


def test_states_that_do_not_belong_together_are_not_stacked():
    with pytest.raises(StateError, match="there are no states to stack"):
        State.stack([])
    with pytest.raises(StateError, match="beside state 0, state 1 belongs to another model: window_dtype"):
        State.stack([filled(GRIFFIN), filled(Model(GRIFFIN.config, window_dtype="bfloat16"))])
    gemma = Model(ModelConfig.preset("tiny-gemma"))
    short, long = (filled(gemma, capacity=capacity) for capacity in (8, 9))
    with pytest.raises(StateError, match="state 1 has another capacity than state 0"):
        State.stack([short, long])


def test_bfloat16_survives_bit_by_bit(tmp_path):
    model = Model(GRIFFIN.config, window_dtype="bfloat16")
    state = filled(model)
    assert state.arrays()["layers.2.keys"].dtype == ml_dtypes.bfloat16
    state.save(tmp_path / "s")
    assert equal(State.load(tmp_path / "s", model), state)


def test_only_a_regular_file_is_replaced(tmp_path):
    """A device or a link would be destroyed by the rename that makes a write whole."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place in (link, pipe, tmp_path, tmp_path / "none" / "s", tmp_path / ("a" * 300)):
        with pytest.raises(StateError, match="cannot be written"):
            filled(GRIFFIN).save(place)
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert target.read_text() == "precious"


def test_pending_tokens_are_one_a_row():
    with pytest.raises(StateError, match="2 rows"):
        filled(GRIFFIN).with_pending([5])
