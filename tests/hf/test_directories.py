"""Directories go round: ours, the published forms, and transformers' own classes read what the others write."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

import torch
from safetensors.torch import load_file, save_file
from small_models import assert_same_logits, random_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaConfig,
    GemmaForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.hf import GriffinConfig, GriffinForCausalLM, GriffinForSequenceClassification, GriffinModel
from griffinlm.loading import find_model
from griffinlm.model.state import to_array

from .face import CONFIGS, GEMMA, OURS, PUBLISHED, random_classifier, random_face, random_rows

MODEL_TYPES = {"published": "recurrent_gemma", "gemma": "gemma", "ours": "griffinlm"}


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_equals_the_model(name: str, tmp_path: Path):
    face, (row,) = random_face(CONFIGS[name], eos_token_id=1, pad_token_id=3), random_rows(CONFIGS[name], [9])
    face.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == MODEL_TYPES[name]
    expected = face(row).logits
    for kind in (AutoModelForCausalLM, GriffinForCausalLM):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is GriffinForCausalLM
        assert torch.equal(loaded.eval()(row).logits, expected)
        assert loaded.lm_head.weight is loaded.model.embedding.weight
        assert (loaded.config.eos_token_id, loaded.generation_config.pad_token_id) == (1, 3)
        assert loaded.config.model_config == CONFIGS[name]
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is GriffinModel
    assert torch.equal(base.eval()(row).last_hidden_state, face.model(row).last_hidden_state)


@pytest.mark.parametrize("kind", [GriffinForCausalLM, GriffinModel])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_package_reads_what_the_face_saves(name: str, kind: type, tmp_path: Path):
    face = random_face(CONFIGS[name])
    (face if kind is GriffinForCausalLM else face.model).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == CONFIGS[name]
    for parameter, values in checkpoint.tensors():
        assert (values == to_array(face.model.get_parameter(parameter))).all(), parameter


@pytest.mark.parametrize(
    ("name", "format"),
    [*((name, "griffinlm") for name in CONFIGS), ("published", "huggingface"), ("gemma", "huggingface")],
)
def test_the_face_reads_what_the_package_writes(name: str, format: str, tmp_path: Path):
    model, (row,) = random_model(CONFIGS[name], 0), random_rows(CONFIGS[name], [9])
    weights = [(name, to_array(values)) for name, values in model.state_dict().items()]
    write_checkpoint(CONFIGS[name], weights, tmp_path / "model", format)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(loaded(row).logits, model(row)[0])


@pytest.mark.parametrize("name", ["published", "gemma"])
def test_plain_transformers_gives_the_same_logits_up_to_the_window(name: str, tmp_path: Path):
    face, plain = random_face(CONFIGS[name]), {"published": RecurrentGemmaForCausalLM, "gemma": GemmaForCausalLM}[name]
    face.save_pretrained(tmp_path / "ours")
    theirs, found = plain.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(theirs) is plain
    assert not any(found.values()), found
    # Its window counts the query's own token.
    (row,) = random_rows(CONFIGS[name], [8])
    with torch.no_grad():
        expected = theirs.eval()(row, use_cache=False).logits
        assert_same_logits(face(row).logits, expected)
        theirs.save_pretrained(tmp_path / "theirs")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
        assert type(again) is GriffinForCausalLM
        assert_same_logits(again.eval()(row).logits, expected)


def test_plain_configurations_find_plain_models():
    """Importing the face changes what directories mean, not what transformers' own configurations mean."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 7, "intermediate_size": 8}
    config = RecurrentGemmaConfig(num_attention_heads=2, num_key_value_heads=1, **sizes)
    assert type(AutoModelForCausalLM.from_config(config)) is RecurrentGemmaForCausalLM


def test_gemma_with_several_heads_of_keys_stays_transformers_own(tmp_path: Path):
    config = GemmaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        vocab_size=7,
        intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    GemmaForCausalLM(config).save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is GemmaForCausalLM


@pytest.mark.parametrize("name", CONFIGS)
def test_a_classifier_goes_round(name: str, tmp_path: Path):
    face, (row,) = random_classifier(CONFIGS[name], num_labels=3), random_rows(CONFIGS[name], [9])
    face.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is GriffinForSequenceClassification
    assert torch.equal(loaded.eval()(row).logits, face(row).logits)


def test_a_classifier_begins_with_the_weights_of_a_language_model(tmp_path: Path):
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [9])
    face.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1).eval()
    assert loaded(row).logits.shape == (1, 1)
    assert torch.equal(loaded.model(row).last_hidden_state, face.model(row).last_hidden_state)


def test_a_head_of_another_size_is_replaced_where_that_is_allowed(tmp_path: Path):
    face, (row,) = random_classifier(PUBLISHED, num_labels=3), random_rows(PUBLISHED, [9])
    face.save_pretrained(tmp_path)
    with pytest.raises(GriffinError, match=r"score.weight is \[3, 24\], expected \[5, 24\]"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.eval()(row).logits.shape == (1, 5)
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(base(row).last_hidden_state, face.model(row).last_hidden_state)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_takes_the_weights_of_a_saved_file_back(name: str, tmp_path: Path):
    """Trainers resume so: the file's tensors are given to `load_state_dict`, not to `from_pretrained`."""
    face, other = random_face(CONFIGS[name], seed=1), random_face(CONFIGS[name], seed=2)
    face.save_pretrained(tmp_path)
    result = other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert all(map(torch.equal, other.parameters(), face.parameters()))


def test_the_bundled_model_writes_what_the_engine_writes():
    directory = find_model("eyas")
    face = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert (face.config.bos_token_id, face.config.eos_token_id, face.config.pad_token_id) == (2, 1, 0)
    model = griffinlm.load("eyas", engine="torch")
    assert set(face.generation_config.eos_token_id) == model.tokenizer.end_ids
    ids = model.tokenizer.encode("Once upon a time")
    assert tokenizer("Once upon a time").input_ids == ids
    prompt = [2, *ids]
    written = face.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, len(prompt) :]
    assert written.tolist() == model.generate(prompt, max_tokens=20, temperature=0.0).token_ids


def damaged(directory: Path, name: str) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    match name:
        case "missing":
            del weights["model.layers.1.mlp_block.up_proj.weight"]
        case "unexpected":
            weights["model.layers.9.mlp_block.up_proj.bias"] = torch.zeros(3)
        case "shape":
            weights["model.final_norm.weight"] = torch.zeros(3)
        case "rank":
            weights["model.layers.0.temporal_block.conv_1d.weight"] = torch.zeros(36, 4)
        case "head":
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1.0
    save_file(weights, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "model.layers.1.mlp.up.weight is missing"),
        ("unexpected", "is unexpected"),
        ("shape", "model.final_norm.scale is [3], expected [24]"),
        ("rank", "conv"),
        ("head", "lm_head.weight differs from the embedding"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, message: str, tmp_path: Path):
    random_face(PUBLISHED).save_pretrained(tmp_path)
    damaged(tmp_path, name)
    with pytest.raises(GriffinError) as refusal:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert message in str(refusal.value)


def test_quantized_directories_are_refused(tmp_path: Path):
    fields = {"model_type": "griffinlm", "format_version": 1, **OURS.to_dict(), "quantization": {}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(GriffinError, match="the weights are quantized"):
        AutoConfig.from_pretrained(tmp_path)


def test_configurations_go_round_in_memory_and_in_files(tmp_path: Path):
    for config in (*CONFIGS.values(), *map(ModelConfig.preset, ("recurrentgemma-2b", "griffin-1.3b", "hawk-100m"))):
        face = GriffinConfig.from_model_config(config, bos_token_id=2, num_labels=5)
        assert face.model_config == config
        assert GriffinConfig.from_dict(face.to_dict()).to_dict() == face.to_dict()
        face.save_pretrained(tmp_path)
        for kind in (GriffinConfig, AutoConfig):
            found = kind.from_pretrained(tmp_path)
            assert type(found) is GriffinConfig
            assert (found.bos_token_id, found.num_labels) == (2, 5)
            assert found.model_config == config or config.recurrent.initial_decay_range != "decay"


def test_configuration_has_the_names_that_other_programs_read():
    face = GriffinConfig.from_model_config(PUBLISHED)
    assert (face.hidden_size, face.num_hidden_layers, face.num_attention_heads) == (24, 5, 2)
    assert face.final_logit_softcapping == 5.0
    assert face.to_dict()["final_logit_softcapping"] == 5.0
    assert GriffinConfig.from_model_config(GEMMA).final_logit_softcapping is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"wdith": 64}, "unknown fields wdith"),
        ({"width": -1}, "width is -1"),
        ({"block_pattern": ["recurrent"]}, "attention sizes must be given exactly where"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ],
)
def test_configurations_that_no_model_can_have_are_refused(fields: dict, message: str):
    with pytest.raises(GriffinError) as refusal:
        GriffinConfig(**fields)
    assert message in str(refusal.value)
