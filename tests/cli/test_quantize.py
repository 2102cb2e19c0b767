"""griffin quantize: smaller weights, and a report of every matrix."""

import json
import sys

import numpy as np
import pytest

import griffinlm
from griffinlm.checkpoint import open_checkpoint
from griffinlm.quantization import RECIPES, Format


@pytest.mark.parametrize(("bits", "default"), [(4, "int4-block128"), (8, "int8-channel")])
def test_the_default_of_each_number_of_bits_is_its_recipe(griffin, tiny_model_directory, tmp_path, bits, default):
    run = griffin("quantize", tiny_model_directory, tmp_path / "q", "--bits", bits, "--json")
    assert run.err == ""
    there, source = open_checkpoint(tmp_path / "q"), open_checkpoint(tiny_model_directory)
    assert there.quantization is not None
    assert there.quantization.recipe == RECIPES[f"int{bits}"]
    assert there.tokenizer_directory == tmp_path / "q"
    found = run.json
    layers = found.pop("layers")
    assert found == {
        "path": str(tmp_path / "q"),
        "recipe": {"default": default, "overrides": []},
        "method": "clip",
        "bytes_before": source.num_bytes,
        "bytes": there.num_bytes,
    }
    assert there.num_bytes < source.num_bytes
    assert [layer["parameter"] for layer in layers] == list(RECIPES[f"int{bits}"].formats(there.config))
    assert all(0 < layer["relative_error"] < {4: 0.13, 8: 0.011}[bits] for layer in layers)


def test_four_bits_are_the_default(griffin, tiny_model_directory, tmp_path):
    assert griffin("quantize", tiny_model_directory, tmp_path / "q").status == 0
    quantization = open_checkpoint(tmp_path / "q").quantization
    assert quantization is not None
    assert quantization.recipe == RECIPES["int4"]


def test_the_table_has_a_line_for_every_matrix_and_the_total(griffin, tiny_model_directory, tmp_path):
    run = griffin("quantize", tiny_model_directory, tmp_path / "q", "--bits", "8", "--block", "32")
    lines = run.out.splitlines()
    there = open_checkpoint(tmp_path / "q")
    assert run.err == ""
    assert lines[0].split() == ["parameter", "format", "bytes", "relative", "error"]
    assert lines[1].split()[:3] == ["embedding.weight", "int8-block32", "10,368"]
    assert len(lines) == 1 + len(RECIPES["int8"].formats(there.config)) + 2
    assert lines[-1].startswith(f"{tmp_path / 'q'}: {there.num_bytes:,} bytes of ")


def test_a_layer_has_a_format_of_its_own(griffin, tiny_model_directory, tmp_path):
    layers = ("--layer", "layers.0.*.up.weight=float32", "--layer", "*.up.weight=int8-channel")
    griffin("quantize", tiny_model_directory, tmp_path / "q", "--block", "32", *layers)
    quantization = open_checkpoint(tmp_path / "q").quantization
    assert quantization is not None
    assert quantization.recipe.default == Format(4, 32)
    assert [(pattern, format.name) for pattern, format in quantization.recipe.overrides] == [
        ("layers.0.*.up.weight", "float32"),
        ("*.up.weight", "int8-channel"),
    ]


def test_a_quantized_model_has_nearly_the_same_logits(griffin, tiny_model_directory, tmp_path):
    pytest.importorskip("torch")
    griffin("quantize", tiny_model_directory, tmp_path / "q", "--bits", "8")
    tokens = [[2, 40, 50, 60, 70]]
    logits = [
        griffinlm.load(path, engine="torch").forward(tokens)[0] for path in (tiny_model_directory, tmp_path / "q")
    ]
    assert 0 < np.abs(logits[0] - logits[1]).max() < 0.05


def test_info_tells_formats_bytes_and_origin(griffin, tiny_model_directory, tmp_path):
    griffin("quantize", tiny_model_directory, tmp_path / "q", "--bits", "8")
    there = open_checkpoint(tmp_path / "q")
    found = griffin("info", tmp_path / "q", "--json").json["checkpoint"]
    assert found["types"] == ["float32", "int8-block16", "int8-channel"]
    assert found["bytes"] == there.num_bytes
    assert found["quantization"] == {
        "recipe": {"default": "int8-channel", "overrides": []},
        "method": "clip",
        "source_digest": open_checkpoint(tiny_model_directory).digest(),
    }
    out = griffin("info", tmp_path / "q").out
    assert f"griffinlm, float32, int8-block16, int8-channel, {there.num_bytes:,} bytes" in out


def test_convert_makes_floats_of_it_again(griffin, tiny_model_directory, tmp_path):
    griffin("quantize", tiny_model_directory, tmp_path / "q")
    assert griffin("convert", tmp_path / "q", tmp_path / "floats", "--to", "griffinlm").status == 0
    floats, there = open_checkpoint(tmp_path / "floats"), open_checkpoint(tmp_path / "q")
    assert floats.quantization is None
    assert floats.types == ("float32",)
    assert floats.tensor("embedding.weight").tobytes() == there.tensor("embedding.weight").tobytes()


def test_a_calibration_text_changes_the_scales(griffin, tiny_model_directory, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in ("the hawk", "the hill they hunt over")))
    griffin("quantize", tiny_model_directory, tmp_path / "plain")
    run = griffin("quantize", tiny_model_directory, tmp_path / "aware", "--calibration", text, "--json")
    assert (run.status, run.err) == (0, "")
    assert run.json["method"] == "activation"
    plain, aware = open_checkpoint(tmp_path / "plain"), open_checkpoint(tmp_path / "aware")
    assert plain.digest() != aware.digest()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--bits", "3"), "--bits is 3"),
        (("--bits", "four"), "--bits"),
        (("--block", "48"), "int4-block48"),
        (("--block", "channel"), "int4-channel"),
        (("--layer", "int8-channel"), "PATTERN=FORMAT"),
        (("--layer", "=int8-channel"), "PATTERN=FORMAT"),
        (("--layer", "*.up.weight=int9"), "int9"),
        (("--layer", "nothing.*=float32"), "nothing.*"),
        (("--calibration", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_what_cannot_be_quantized_is_refused_and_nothing_is_written(
    griffin, tiny_model_directory, tmp_path, arguments, named
):
    assert named in griffin.fails("quantize", tiny_model_directory, tmp_path / "q", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_sources_and_destinations_that_cannot_be_are_refused(griffin, tiny_model_without_tokenizer, tmp_path):
    source = tiny_model_without_tokenizer
    assert "nowhere" in griffin.fails("quantize", "nowhere", tmp_path / "q")
    assert "exists already" in griffin.fails("quantize", source, source)
    (tmp_path / "text.txt").write_text("the hawk")
    calibration = ("--calibration", tmp_path / "text.txt")
    assert "has no tokenizer" in griffin.fails("quantize", source, tmp_path / "q", *calibration)
    griffin("quantize", source, tmp_path / "q")
    # Before the text is read, which may take hours.
    calibration = ("--calibration", tmp_path / "nowhere.txt")
    assert "exists already" in griffin.fails("quantize", source, source, *calibration)
    assert "quantized already" in griffin.fails("quantize", tmp_path / "q", tmp_path / "again", *calibration)
    assert "quantized already" in griffin.fails("quantize", tmp_path / "q", tmp_path / "again")
    run = griffin("quantize", tmp_path / "q", tmp_path / "again", "--json")
    assert "quantized already" in run.json["error"]


def test_on_a_terminal_progress_goes_to_standard_error(griffin, tiny_model_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = griffin("quantize", tiny_model_directory, tmp_path / "q", "--json")
    assert run.status == 0
    assert run.json["path"] == str(tmp_path / "q")
