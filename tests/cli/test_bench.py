"""griffin bench: one object a position with the figures of the library, and one line for every fault."""

import dataclasses
import json

import pytest

from griffinlm.evaluate import benchmark_weights, speed
from griffinlm.evaluate.speed import Figure

FIELDS = [field.name for field in dataclasses.fields(Figure)]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(speed, "read_bandwidth", lambda threads: 1e10)
        yield


def lines(run) -> list[dict]:
    assert (run.status, run.err) == (0, "")
    return [json.loads(line) for line in run.out.splitlines()]


def test_one_object_a_position_in_the_order_asked(griffin):
    options = ("--preset", "tiny-griffin", "--weights", "int8", "--tokens", "3", "--threads", "1")
    found = lines(griffin("bench", "decode", *options, "--positions", "100000,0,5", "--rows", "2", "--json"))
    assert [list(figure) for figure in found] == [FIELDS] * 3
    assert [figure["position"] for figure in found] == [100_000, 0, 5]
    for figure in found:
        assert (figure["command"], figure["model"], figure["engine"]) == ("decode", "tiny-griffin", "onnx")
        assert (figure["weights"], figure["window_dtype"]) == ("int8", "float32")
        assert (figure["rows"], figure["tokens"], figure["threads"]) == (2, 3, 1)
        assert figure["tokens_per_second"] == pytest.approx(2e3 / figure["ms_per_token"], rel=1e-3)


@pytest.mark.parametrize(("measure", "rows", "tokens"), [("decode", 1, 64), ("prefill", 1, 512), ("batch", 8, 64)])
def test_what_is_not_given(griffin, measure, rows, tokens):
    (figure,) = lines(griffin("bench", measure, "--preset", "tiny-gemma", "--json"))
    assert (figure["command"], figure["rows"], figure["tokens"]) == (measure, rows, tokens)
    assert (figure["position"], figure["weights"], figure["engine"]) == (0, "int4", "onnx")


def test_a_model_is_measured_with_the_weights_of_its_files(griffin, tiny_model_directory, tmp_path):
    options = ("--tokens", "2", "--json")
    (figure,) = lines(griffin("bench", "decode", "--model", tiny_model_directory, *options))
    assert (figure["model"], figure["weights"]) == (str(tiny_model_directory), "float32")
    quantized = tmp_path / "quantized"
    assert griffin("quantize", tiny_model_directory, quantized, "--bits", "4", "--block", "32").status == 0
    (figure,) = lines(griffin("bench", "decode", "--model", quantized, *options))
    assert figure["weights"] == "int4-block32"


def test_torch_and_window_types(griffin):
    options = ("--preset", "tiny-griffin", "--tokens", "2", "--threads", "1", "--json")
    (torch,) = lines(griffin("bench", "decode", "--engine", "torch", *options))
    assert (torch["engine"], torch["weights"], torch["window_dtype"]) == ("torch", "float32", "float32")
    (int8,) = lines(griffin("bench", "decode", "--window-dtype", "int8", *options))
    assert (int8["engine"], int8["weights"], int8["window_dtype"]) == ("onnx", "int4", "int8")
    assert int8["state_bytes"] < torch["state_bytes"]


def test_plain_output_is_a_table_of_the_same_figures(griffin):
    run = griffin("bench", "decode", "--preset", "tiny-griffin", "--tokens", "2", "--positions", "0,1000")
    assert (run.status, run.err) == (0, "")
    assert run.out.isascii()
    description, table = run.out.split("\n\n")
    assert "tiny-griffin, int4, from" in description
    assert [line.split()[0] for line in table.splitlines()] == ["position", "0", "1,000"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dekode"], "'dekode'; allowed are decode, prefill, batch"),
        (["decode", "--positions", "0,x"], "positions is '0,x'"),
        (["decode", "--positions", "-1"], "positions is '-1'"),
        (["decode", "--positions", ""], "positions is ''"),
        (["decode", "--positions", "1" * 19], f"positions is {'1' * 19}"),
        (["batch", "--rows", "0"], "rows is 0"),
        (["prefill", "--tokens", "0"], "tokens is 0"),
        (["decode", "--tokens", "many"], "--tokens"),
        (["decode", "--engine", "auto"], "engine is 'auto'; allowed are onnx, torch"),
        (["decode", "--weights", "int5"], "weights is 'int5'; allowed are int4, int8"),
        (["decode", "--weights", "bfloat16"], "weights is 'bfloat16'"),
        (["decode", "--weights", "int4", "--engine", "torch"], "weights is 'int4'; engine torch has float32, bfloat16"),
        (["decode", "--preset", "tiny"], "no preset is called 'tiny'"),
        (["decode", "--preset", "tiny-hawk", "--model", "eyas"], "give one of them"),
        (["decode", "--model", "nowhere"], "there is no model 'nowhere'"),
        (["decode", "--preset", "tiny-hawk", "--threads", "0"], "threads is 0"),
        (["decode", "--preset", "tiny-hawk", "--window-dtype", "int4"], "window_dtype is 'int4'"),
        (["decode", "--preset", "tiny-gemma", "--positions", f"{1 << 39}"], "MB are available"),
        (["decode", "--warmup", "3"], "--warmup"),
        ([], "decode|prefill|batch"),
    ],
)
def test_what_cannot_be_measured_is_refused(griffin, arguments, words):
    assert words in griffin.fails("bench", *arguments)


def test_threads_that_cannot_be_are_refused_before_weights_are_written(griffin, monkeypatch):
    written = []
    monkeypatch.setattr(benchmark_weights, "random_checkpoint", lambda *wanted: written.append(wanted))
    assert "threads is 0" in griffin.fails("bench", "decode", "--preset", "tiny-griffin", "--threads", "0")
    assert written == []


def test_faults_are_told_as_json_too(griffin):
    run = griffin("bench", "decode", "--rows", "0", "--json")
    assert run.status == 2
    assert "rows is 0" in run.json["error"]
