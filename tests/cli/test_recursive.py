"""griffin recursive: a model of shared layers that every command reads, and a report of every matrix."""

import dataclasses

import numpy as np
import pytest
from tolerances import assert_agree

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint


@pytest.fixture
def eight_layers(tmp_path, tiny_model_directory):
    """A Griffin of eight layers, with a tokenizer."""
    config = dataclasses.replace(open_checkpoint(tiny_model_directory).config, num_layers=8)
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "plain", "griffinlm", None, tiny_model_directory)
    return tmp_path / "plain"


def test_the_report_has_counts_settings_and_every_matrix(griffin, eight_layers, tmp_path):
    options = ("--loops", "2", "--init", "stepwise", "--rank", "4", "--tie", "all", "--seed", "3", "--json")
    run = griffin("recursive", eight_layers, tmp_path / "r", *options)
    assert (run.status, run.err) == (0, "")
    source, there = open_checkpoint(eight_layers), open_checkpoint(tmp_path / "r")
    matrices = run.json.pop("matrices")
    found = {name: value for name, value in run.json.items() if name != "matrices"}
    assert found == {
        "path": str(tmp_path / "r"),
        "num_loops": 2,
        "init": "stepwise",
        "rank": 4,
        "tie": "all",
        "low_rank": "svd",
        "seed": 3,
        "layers": 8,
        "shared_layers": 3,
        "parameters_before": source.config.num_parameters,
        "parameters": there.config.num_parameters,
        "not_embedding_before": source.config.num_parameters - 288 * 32,
        "not_embedding": there.config.num_parameters - 288 * 32,
    }
    assert len(matrices) == 4 * 8 + 2 * 7
    assert {matrix["rank"] for matrix in matrices} == {4}
    assert all(0 <= matrix["relative_error"] <= matrix["distance"] for matrix in matrices)
    assert there.tokenizer_directory == tmp_path / "r"


def test_the_table_has_a_line_for_every_matrix_and_the_total(griffin, eight_layers, tmp_path):
    run = griffin("recursive", eight_layers, tmp_path / "r", "--loops", "2")
    lines = run.out.splitlines()
    assert lines[0].split() == ["parameter", "shared", "rank", "distance", "relative", "error"]
    assert len(lines) == 1 + 4 * 8 + 2 * 7 + 2
    assert lines[-1].startswith(f"{tmp_path / 'r'}: 3 layers in 2 loops, 2 layers of their own, ")


def test_a_full_rank_writes_what_the_original_writes_and_info_tells_of_the_loops(griffin, eight_layers, tmp_path):
    griffin("recursive", eight_layers, tmp_path / "r", "--loops", "2", "--rank", "100")
    tokens = [[2, 40, 50, 60, 70]]
    logits = [griffinlm.load(path).forward(tokens)[0] for path in (eight_layers, tmp_path / "r")]
    assert_agree(logits[0], logits[1], "model", "float32", "onnx")
    words = ("generate", "the hawk", "--max-tokens", "5", "--temperature", "0", "--model")
    assert griffin(*words, tmp_path / "r").out == griffin(*words, eight_layers).out
    facts = griffin("info", tmp_path / "r", "--json").json
    loops = {"loops": 2, "shared_layers": 3, "own_layers": 2}
    assert facts["recursion"] == {**loops, "tie": "matrices", "rank": 100, "skips": False}
    assert facts["parameters"]["total"] == open_checkpoint(tmp_path / "r").config.num_parameters
    row = "2 loops through 3 layers that share matrices, rank 100; 2 layers of their own"
    assert row in griffin("info", tmp_path / "r").out
    assert griffin("info", eight_layers, "--json").json["recursion"] is None


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_recursive_model_is_quantized_and_its_states_are_its_own(griffin, eight_layers, tmp_path, weights):
    griffin("recursive", eight_layers, tmp_path / "r", "--loops", "2", "--rank", "2")
    run = griffin("quantize", tmp_path / "r", tmp_path / "q", "--bits", weights.removeprefix("int"))
    assert (run.status, run.err) == (0, "")
    there, whole = open_checkpoint(tmp_path / "q"), griffinlm.load(tmp_path / "r", engine="torch")
    assert "layers.3.mlp.up.weight" not in there.config.parameter_shapes()
    stored = there.stored("layers.3.mlp.up.low_rank.up")
    assert stored is not None
    assert stored.dtype == "float32"
    tokens = [[2, 40, 50, 60, 70, 80]]
    quantized = griffinlm.load(tmp_path / "q")
    expected, state = quantized.forward(tokens)
    original, _ = whole.forward(tokens)
    assert expected is not None
    assert original is not None
    assert 0 < np.abs(expected - original).max() < {"int8": 0.1, "int4": 1.0}[weights]
    _, state = quantized.forward([tokens[0][:4]])
    state.save(tmp_path / "state.safetensors")
    again = griffinlm.State.load(tmp_path / "state.safetensors", quantized)
    found, _ = quantized.forward([tokens[0][4:]], again)
    assert_agree(found, expected[:, 4:], "model, int8 or int4", "float32", "onnx")
    with pytest.raises(griffinlm.GriffinError):
        griffinlm.State.load(tmp_path / "state.safetensors", griffinlm.load(tmp_path / "r"))


def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(griffin, eight_layers, tmp_path):
    def fails(source, *options) -> str:
        line = griffin.fails("recursive", source, tmp_path / "r", *options)
        assert not (tmp_path / "r").exists()
        return line

    assert "--loops" in fails(eight_layers)
    assert "8 layers in a pattern of 3 have room for 2" in fails(eight_layers, "--loops", "5")
    assert "init is 'upper'" in fails(eight_layers, "--loops", "2", "--init", "upper")
    griffin("quantize", eight_layers, tmp_path / "q")
    assert "is quantized (int4-block128)" in fails(tmp_path / "q", "--loops", "2")
    assert "there is no model" in fails("nowhere", "--loops", "2")
    assert "exists already" in griffin.fails("recursive", eight_layers, eight_layers, "--loops", "2")


def test_the_transformers_face_and_tuning_refuse_shared_layers_in_one_line(griffin, eight_layers, tmp_path):
    hf = pytest.importorskip("griffinlm.hf", reason="needs the extra train")
    griffin("recursive", eight_layers, tmp_path / "r", "--loops", "2")
    with pytest.raises(griffinlm.GriffinError, match="no layers that share parameters"):
        hf.GriffinForCausalLM.from_pretrained(tmp_path / "r")


def test_a_model_that_guesses_by_its_first_loop_prints_the_same_text(griffin, eight_layers, tmp_path):
    griffin("recursive", eight_layers, tmp_path / "r", "--loops", "2", "--rank", "4")
    options = ("the hawk", "--model", tmp_path / "r", "--max-tokens", "12", "--seed", "5")
    assert griffin("generate", *options, "--speculate", "2") == griffin("generate", *options)
    run = griffin("generate", "the hawk", "--model", eight_layers, "--speculate", "2")
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("error: the model has no loops\nhint: ")
