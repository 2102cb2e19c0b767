"""griffin convert: the same weights in another format, or nothing at all."""

import json

import pytest

from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.presets import PRESETS, bfloat16_sqrt

CONFIG = ModelConfig(
    vocab_size=288,
    width=32,
    num_layers=3,
    block_pattern=("recurrent", "local_attention"),
    mlp_hidden=48,
    recurrent=RecurrentConfig(width=40, num_gate_blocks=2),
    attention=AttentionConfig(num_heads=2, head_size=16, window_tokens=7),
    embedding_scale=bfloat16_sqrt(32),
    logit_soft_cap=30.0,
)
"""A model that every format can hold."""


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_tokenizer_directory):
    path = tmp_path_factory.mktemp("source") / "model"
    write_checkpoint(CONFIG, initial_tensors(CONFIG, 0), path, "griffinlm", None, tiny_tokenizer_directory)
    return path


def test_there_and_back_through_every_format_the_digest_stays(griffin, source, tmp_path):
    digest = open_checkpoint(source).digest()
    for start, form in [(source, "huggingface"), ("huggingface", "deepmind"), ("deepmind", "griffinlm")]:
        run = griffin("convert", tmp_path / start, tmp_path / form, "--to", form)
        assert run == (0, f"{tmp_path / form}\n", "")
        written = open_checkpoint(tmp_path / form)
        assert written.digest() == digest
        assert written.tokenizer_directory == tmp_path / form


@pytest.mark.parametrize("way", ["preset", "config"])
def test_a_file_without_configuration_is_told_what_it_is(griffin, tmp_path, way, monkeypatch):
    monkeypatch.setitem(PRESETS, "sample", CONFIG)
    griffin("convert", "--random", "sample", tmp_path / "deepmind", "--to", "deepmind")
    (tmp_path / "deepmind" / "config.json").rename(tmp_path / "config.json")
    given = {"preset": ("--preset", "sample"), "config": ("--config", tmp_path / "config.json")}[way]
    assert "--preset" in griffin("convert", tmp_path / "deepmind", tmp_path / "out", "--to", "griffinlm").err
    assert griffin("convert", tmp_path / "deepmind", tmp_path / "out", "--to", "griffinlm", *given).status == 0
    assert open_checkpoint(tmp_path / "out").config == CONFIG


def test_random_weights_are_those_of_preset_and_seed(griffin, tmp_path):
    run = griffin("convert", "--random", "tiny-hawk", tmp_path / "hawk", "--seed", "5", "--json")
    assert run.err == ""
    assert run.json == {"path": str(tmp_path / "hawk"), "format": "griffinlm", "tensors": 65}
    written = open_checkpoint(tmp_path / "hawk")
    assert written.config == ModelConfig.preset("tiny-hawk")
    for name, values in initial_tensors(written.config, 5):
        assert written.tensor(name).tobytes() == values.tobytes()


def test_dtype_casts_every_tensor(griffin, tmp_path):
    griffin("convert", "--random", "tiny-hawk", tmp_path / "hawk", "--dtype", "bfloat16")
    assert open_checkpoint(tmp_path / "hawk").types == ("bfloat16",)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("SRC", "DST"), "--to"),
        (("SRC", "--to", "griffinlm"), "1 paths"),
        (("SRC", "DST", "more", "--to", "griffinlm"), "3 paths"),
        (("SRC", "DST", "--to", "gguf"), "gguf"),
        (("SRC", "DST", "--to", "griffinlm", "--dtype", "int8"), "int8"),
        (("SRC", "DST", "--to", "griffinlm", "--seed", "1"), "--seed"),
        (("SRC", "DST", "--to", "griffinlm", "--preset", "tiny-hawk"), "differ"),
        (("SRC", "DST", "--to", "griffinlm", "--preset", "nothing"), "nothing"),
        (("SRC", "DST", "--to", "griffinlm", "--preset", "tiny-hawk", "--config", "x"), "--preset"),
        (("SRC", "DST", "--to", "griffinlm", "--config", "nowhere.json"), "nowhere.json"),
        (("nowhere", "DST", "--to", "griffinlm"), "nowhere"),
        (("SRC", "SRC", "--to", "griffinlm"), "exists already"),
        (("SRC", "DST", "--random", "tiny-hawk"), "SRC"),
        (("DST", "--random", "sparrow"), "sparrow"),
        (("DST", "--random", "tiny-hawk", "--preset", "tiny-hawk"), "--preset"),
        (("DST", "--random", "tiny-hawk", "--seed", "-1"), "--seed"),
        (("DST", "--random", "tiny-hawk", "--to", "gguf"), "gguf"),
        (("DST", "--random", "griffin-100m", "--to", "huggingface"), "Hugging Face"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_written(griffin, source, tmp_path, arguments, named):
    places = {"SRC": source, "DST": tmp_path / "out"}
    assert named in griffin.fails("convert", *(places.get(word, word) for word in arguments))
    assert list(tmp_path.iterdir()) == []
    assert not list(source.parent.glob(".*"))


def test_all_faults_of_a_checkpoint_are_listed_as_json(griffin, source, tmp_path):
    fields = json.loads((source / "config.json").read_text()) | {"width": 64, "embedding_scale": 8.0}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    run = griffin("convert", tmp_path, tmp_path / "out", "--to", "griffinlm", "--json")
    assert run.status == 2
    assert len(run.json["faults"]) > 3
    assert f"{len(run.json['faults'])} faults" in run.err
