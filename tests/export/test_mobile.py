"""The files for phones: the examples' calls through the very graph, and their names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_agree

import griffinlm
from griffinlm.export import ExportError, export_mobile, mobile

from .caller import Caller

INPUTS = {"token_ids", "positions", "num_before", "logit_index"}
EXAMPLES = ("Griffin.kt", "Griffin.swift")
NUM_STEPS = 600
"""More than the window of the bundled model."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("mobile") / "eyas"
    export_mobile("eyas", destination)
    return destination


@pytest.fixture(scope="module")
def caller(folder) -> Caller:
    return Caller(folder)


@pytest.fixture(scope="module")
def model() -> griffinlm.LanguageModel:
    return griffinlm.load("eyas", threads=1)


@pytest.mark.parametrize("weights", [None, "int8", "int4"])
def test_the_callers_answer_is_pythons(weights, tmp_path):
    model = griffinlm.load("eyas", threads=1, weights=weights)
    export_mobile("eyas", tmp_path / "phone", weights)
    caller = Caller(tmp_path / "phone")
    ids = model.tokenizer.encode_chat([{"role": "user", "content": "Tell me a story."}])
    state = caller.new_state()
    written = [caller.best(caller.read(state, ids))]
    while len(written) < 50:
        written.append(caller.best(caller.read(state, written[-1:])))
    assert written == model.generate(ids, max_tokens=50, min_tokens=50, temperature=0).token_ids


def test_the_callers_state_is_pythons_beyond_the_window(caller, model):
    tokens = np.random.default_rng(0).integers(6, 8000, NUM_STEPS).tolist()
    state = caller.new_state()
    logits = caller.read(state, tokens)
    expected, theirs = model.forward([tokens], logits="last")
    assert expected is not None
    assert_agree(logits, expected[0, 0], "model", "float32", "onnx")
    arrays = theirs.arrays()
    assert state.num_tokens == arrays["num_tokens"][0] == NUM_STEPS
    for name, array in state.arrays.items():
        assert_agree(array, arrays[name], "model", "float32", "onnx")


def test_tokens_one_by_one_equal_a_chunk(caller):
    tokens = np.random.default_rng(1).integers(6, 8000, 40).tolist()
    whole, single = caller.new_state(), caller.new_state()
    logits = caller.read(whole, tokens)
    for token in tokens:
        last = caller.read(single, [token])
    assert_agree(last, logits, "model", "float32", "onnx")


def test_a_saved_state_goes_on_exactly(caller):
    state = caller.new_state()
    caller.read(state, [2, 4, 100, 200])
    data = caller.save(state)
    fork = state.copy()
    expected = caller.read(state, [300, 301])
    for again in (fork, caller.load(data)):
        np.testing.assert_array_equal(caller.read(again, [300, 301]), expected)
    assert len(data) == len(caller.save(state))


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_name_exactly_the_graphs_inputs_and_outputs(example, folder, caller):
    code = re.sub(r"//.*|/\*.*?\*/", "", (folder / example).read_text(encoding="utf-8"))
    literals = set(re.findall(r'"([^"\n]*)"', code))
    names = {spec["name"] for spec in caller.specs}
    assert {i.name for i in caller.session.get_inputs()} == INPUTS | names
    assert {o.name for o in caller.session.get_outputs()} == {"logits"} | {f"{name}.new" for name in names}
    assert literals >= INPUTS | {"logits", ".new"}
    described = set(caller.description) | {"name", "dtype", "shape", "is_ring"}
    words = {word for word in literals if re.fullmatch(r"[a-z_.]+", word)}
    assert words <= INPUTS | {"logits", ".new", "float32", "model.json"} | described


def test_the_operators_of_a_reduced_build_are_those_of_the_model(folder):
    lines = (folder / "required_operators.config").read_text(encoding="utf-8").split()
    domains = [line.split(";")[0] for line in lines]
    operators = {name for line in lines for name in line.split(";")[2].split(",")}
    assert set(domains) <= {"ai.onnx", "com.microsoft"}
    assert {"Gemm", "Gather", "RMSNormalization", "If", "Softmax"} <= operators


def test_no_path_of_this_machine_is_in_the_files(folder, tmp_path_factory):
    for path in folder.iterdir():
        assert str(tmp_path_factory.getbasetemp()).encode() not in path.read_bytes()


def test_the_description_has_the_fingerprint_and_sizes(folder, model):
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert description["fingerprint"]["weights"] == model.identity.fingerprint.weights
    assert description["state_bytes"] == model.new_state().nbytes
    assert description["num_choices"] == model.tokenizer.vocab_size


def test_a_model_too_large_for_the_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(mobile, "LARGEST_BYTES", 1_000_000)
    with pytest.raises(ExportError, match="at most 1,000,000"):
        export_mobile("eyas", tmp_path / "phone")
    assert not (tmp_path / "phone").exists()
