"""griffin info: exact sizes, as published."""

import dataclasses
import math
import sys

import numpy as np
import pytest

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.exits import EXITS_FILE, Exits, write_exits
from griffinlm.config import RecursionConfig
from griffinlm.presets import PRESETS


def test_recurrentgemma_2b_has_the_published_sizes(griffin):
    facts = griffin("info", "recurrentgemma-2b", "--json").json
    assert facts["parameters"] == {"total": 2_682_862_080, "not_embedding": 2_682_862_080 - 256_000 * 2560}
    assert facts["layers"] == {"recurrent": 18, "local_attention": 8}
    # 18 layers of 2560 (4 + 3 * 2) bytes, 8 windows of 2048 * 256 * 2 * 2 bytes, two counters.
    assert facts["state_bytes"]["bfloat16"] == 18 * 2560 * 10 + 8 * 2048 * 256 * 4 + 16 == 17_238_032
    assert [c["tokens"] for c in facts["contexts"]] == [2048, 8192, 32768, 131072]
    assert all(c["state_bytes"] == 17_238_032 for c in facts["contexts"])
    assert [c["gemma_2b_bytes"] for c in facts["contexts"]] == [n * 18_432 + 16 for n in (2048, 8192, 32768, 131072)]
    assert facts["contexts"][-1]["ratio"] == pytest.approx(140.15, abs=0.01)
    assert facts["weight_bytes"] == {
        "float32": 4 * 2_682_862_080,
        "bfloat16": 2 * 2_682_862_080,
        "int8": 2_682_862_080,
        "int4": 2_682_862_080 // 2,
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_facts(griffin, preset):
    run = griffin("info", preset, "--json")
    assert (run.status, run.err) == (0, "")
    assert run.json["parameters"]["total"] == PRESETS[preset].num_parameters
    assert (run.json["state_bytes"] is None) == PRESETS[preset].needs_capacity


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("float32", {}),
        ("float16 window", {"window_dtype": "float16"}),
        ("int8 window", {"window_dtype": "int8"}),
        ("bfloat16", {"weights": "bfloat16"}),
    ],
)
def test_the_state_counted_is_that_of_a_loaded_model(griffin, tiny_model_directory, name, options):
    facts = griffin("info", tiny_model_directory, "--json").json
    model = griffinlm.load(tiny_model_directory, **options)
    assert facts["state_bytes"][name] == model.new_state().nbytes


def test_only_models_of_its_size_stand_beside_the_cache_of_gemma(griffin):
    assert "cache of Gemma-2B" in griffin("info", "recurrentgemma-2b").out
    assert "Gemma" not in griffin("info", "eyas").out


def test_a_model_directory_has_format_tokenizer_types_and_digest(griffin, tiny_model_directory):
    found = griffin("info", tiny_model_directory, "--json").json["checkpoint"]
    model = griffinlm.load(tiny_model_directory)
    assert found == {
        "path": str(tiny_model_directory),
        "format": "griffinlm",
        "types": ["float32"],
        "bytes": 4 * PRESETS["tiny-griffin"].num_parameters + 4 * 32 * (288 - 259),
        "quantization": None,
        "exits": None,
        "digest": open_checkpoint(tiny_model_directory).digest(),
        "tokenizer": {"vocab_size": model.tokenizer.vocab_size, "digest": model.tokenizer.digest},
    }


def test_a_model_without_tokenizer_says_so(griffin, tiny_model_without_tokenizer):
    assert griffin("info", tiny_model_without_tokenizer, "--json").json["checkpoint"]["tokenizer"] is None
    assert "tokenizer   none\n" in griffin("info", tiny_model_without_tokenizer).out


def test_plain_output_has_every_figure(griffin):
    run = griffin("info", "recurrentgemma-2b")
    assert run.err == ""
    assert run.out.isascii()
    for figure in (
        "2,682,862,080",
        "18 recurrent, 8 local attention",
        "17,238,032",
        "37,748,752",
        "140.2x",
        "1.34 GB int4",
    ):
        assert figure in run.out


def test_on_a_terminal_the_same_figures_stand_in_a_table(griffin, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    out = griffin("info", "recurrentgemma-2b").out
    assert "│" in out
    assert all(figure in out for figure in ("2,682,862,080", "17,238,032", "2,415,919,120", "140.2x"))


def test_an_unknown_name_is_refused_with_the_presets(griffin):
    run = griffin("info", "nowhere")
    assert run.status == 2
    assert "nowhere" in run.err.splitlines()[0]
    assert all(preset in run.err.splitlines()[1] for preset in PRESETS)


def test_exits_in_a_models_directory_are_told(griffin, tmp_path):
    config = dataclasses.replace(PRESETS["tiny-griffin"], num_layers=9, recursion=RecursionConfig(3))
    write_checkpoint(config, initial_tensors(config, 0), tmp_path / "looped", "griffinlm")
    heads = np.ones((2, 4, config.width), np.float32), *(np.ones((2, 4), np.float32) for _ in range(2))
    exits = Exits(*heads, np.zeros(2, np.float32), (0.25, math.inf), 0.9, (0.5, 0.0), 1234)
    write_exits(tmp_path / "looped", exits)
    found = griffin("info", tmp_path / "looped", "--json").json["checkpoint"]["exits"]
    loops = [{"threshold": 0.25, "share": 0.5}, {"threshold": None, "share": 0.0}]
    assert found == {"quality": 0.9, "tokens": 1234, "loops": loops}
    told = "behind loop 1 from 0.2500 on (50.0%), behind loop 2 none leaves, 90% right, by 1,234 tokens"
    assert told in griffin("info", tmp_path / "looped").out
    (tmp_path / "looped" / EXITS_FILE).write_bytes(b"damaged")
    assert "is damaged" in griffin.fails("info", tmp_path / "looped")
