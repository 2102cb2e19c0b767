"""config.json of Hugging Face: the published quirks are read, and what transformers cannot express is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from griffinlm.checkpoint import CheckpointError, open_checkpoint, write_checkpoint
from griffinlm.checkpoint.huggingface_config import from_huggingface, to_huggingface
from griffinlm.config import AttentionConfig, ConfigError, ModelConfig, RecurrentConfig

from .models import GEMMA, GRIFFINS, griffin, random_tensors

RECURRENT_GEMMA_2B: dict[str, Any] = {
    "_block_types": ["recurrent", "recurrent", "attention"],
    "architectures": ["RecurrentGemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_window_size": 2048,
    "bos_token_id": 2,
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "model_type": "recurrent_gemma",
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}
"""The fields of the published 2B, as transformers 4.40 wrote them."""

GEMMA_2B: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}


def without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def test_the_published_2b_is_the_preset():
    assert from_huggingface(RECURRENT_GEMMA_2B) == ModelConfig.preset("recurrentgemma-2b")


def test_the_published_gemma_2b_is_the_preset():
    assert from_huggingface(GEMMA_2B) == ModelConfig.preset("gemma-2b")


def test_the_9b_spells_its_pattern_without_the_underscore():
    values = without(RECURRENT_GEMMA_2B, "_block_types") | {"block_types": ["recurrent", "recurrent", "attention"]}
    nine = {"hidden_size": 4096, "intermediate_size": 24576, "lru_width": 4096, "num_attention_heads": 16}
    assert from_huggingface(values | nine | {"num_hidden_layers": 38}) == ModelConfig.preset("recurrentgemma-9b")


def test_rope_fields_of_transformers_5_mean_the_same():
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    new = without(RECURRENT_GEMMA_2B, "rope_theta", "partial_rotary_factor") | {"rope_parameters": rope}
    assert from_huggingface(new) == from_huggingface(RECURRENT_GEMMA_2B)
    assert from_huggingface(without(GEMMA_2B, "rope_theta") | {"rope_parameters": {"rope_theta": 5.0}}) == (
        from_huggingface(GEMMA_2B | {"rope_theta": 5.0})
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 10}, "num_key_value_heads is 10; supported here: 1"),
        ({"num_key_value_heads": None}, "num_key_value_heads is 10; supported here: 1"),
        ({"num_key_value_heads": True}, "num_key_value_heads is True"),
        ({"conv1d_width": 1}, "num_conv_taps is 1; it must be at least 2"),
        ({"conv1d_width": 4.0}, "conv1d_width is 4.0; it must be a whole number"),
        ({"conv1d_width": 0}, "conv1d_width is 0"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; supported here: 'gelu_pytorch_tanh'"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"embeddings_scale_by_sqrt_dim": False}, "embeddings_scale_by_sqrt_dim is False"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"intermediate_size": 15361}, "intermediate_size is 15361; it must be even"),
        ({"logits_soft_cap": 0.0}, "logits_soft_cap is 0.0; it must be a positive number"),
        ({"logits_soft_cap": None}, "logits_soft_cap is null; it must be given"),
        ({"head_dim": 128}, "head_dim is 128; supported here: 256"),
        ({"_block_types": ["recurrent", "mamba"]}, "_block_types is"),
        ({"_block_types": []}, "_block_types is []"),
        ({"_block_types": "recurrent"}, "_block_types is 'recurrent'"),
        ({"block_types": ["recurrent"]}, "_block_types and block_types differ"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters.rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.rope_type is 'linear'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is 10000.0, but 5.0 in rope_parameters"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"rope_theta": "10000"}, "rope_theta is '10000'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"hidden_size": 10**400}, "hidden_size is 1000"),
        ({"num_attention_heads": 7}, "hidden_size is 2560; it must be a multiple of num_attention_heads (7)"),
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000; it must lie in"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        from_huggingface(RECURRENT_GEMMA_2B | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8; supported here: 1"),
        ({"num_key_value_heads": None}, "supported here: 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; supported here: 1.0"),
        ({"head_dim": None}, "head_dim is null"),
    ],
)
def test_what_is_not_computed_here_is_refused_for_gemma(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        from_huggingface(GEMMA_2B | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", [n for n in RECURRENT_GEMMA_2B if n.endswith(("_size", "layers", "cap", "eps", "heads"))]
)
def test_a_missing_size_is_never_a_default(name: str):
    with pytest.raises(ConfigError, match=name):
        from_huggingface(without(RECURRENT_GEMMA_2B, name))


@pytest.mark.parametrize("config", [*GRIFFINS.values(), GEMMA, ModelConfig.preset("recurrentgemma-9b")])
def test_written_and_read_is_the_same_configuration(config: ModelConfig):
    assert from_huggingface(json.loads(json.dumps(to_huggingface(config)))) == config


def test_the_written_fields_have_the_published_meaning():
    written = to_huggingface(ModelConfig.preset("recurrentgemma-2b"))
    assert written["attention_window_size"] == 2048
    assert written["intermediate_size"] == 15360
    shared = written.keys() & RECURRENT_GEMMA_2B.keys()
    assert {name: written[name] for name in shared} == {name: RECURRENT_GEMMA_2B[name] for name in shared}


BASE = GRIFFINS["ends in recurrent"]
ATTENTION, RECURRENT = BASE.attention or AttentionConfig(1, 1), BASE.recurrent or RecurrentConfig(1, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(BASE, logit_soft_cap=None), "logit_soft_cap is off"),
        (dataclasses.replace(BASE, embedding_scale=1.0), "embedding_scale is 1.0"),
        (dataclasses.replace(BASE, use_bias=False), "use_bias is false"),
        (dataclasses.replace(BASE, attention=dataclasses.replace(ATTENTION, head_size=16)), "2 heads of 16"),
        (dataclasses.replace(BASE, attention=dataclasses.replace(ATTENTION, rope_fraction=0.0)), "rope_fraction is 0"),
        (dataclasses.replace(BASE, recurrent=dataclasses.replace(RECURRENT, num_gate_blocks=4)), "num_gate_blocks"),
        (griffin(("recurrent",), 101), "repeats it at most 100 times"),
        (ModelConfig.preset("griffin-7b"), "logit_soft_cap is off"),
        (ModelConfig.preset("mqa-80m"), "Gemma"),
        (dataclasses.replace(GEMMA, logit_soft_cap=30.0), "logit_soft_cap is 30.0, Gemma has none"),
        (dataclasses.replace(GEMMA, embedding_scale=1.0), "embedding_scale is 1.0"),
        (dataclasses.replace(GEMMA, use_bias=True), "use_bias is true"),
        (
            dataclasses.replace(BASE, block_pattern=("recurrent", "local_attention", "global_attention")),
            "mixes global_attention",
        ),
    ],
)
def test_what_transformers_cannot_express_is_not_written(config: ModelConfig, message: str, tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(config, random_tensors(GEMMA).items(), tmp_path / "model", "huggingface")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_ids_of_control_tokens_come_from_the_tokenizer(tmp_path: Path):
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": 5, "content": "<bos>"}, {"id": 7, "content": "<eos>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<bos>", "eos_token": {"content": "<eos>"}})
    )
    (tokenizer / "notes.txt").write_text("not the tokenizer's")
    tensors = random_tensors(BASE)
    write_checkpoint(BASE, tensors.items(), tmp_path / "model", "huggingface", tokenizer_directory=tokenizer)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (5, 7, None)
    assert written["torch_dtype"] == "float32"
    assert open_checkpoint(tmp_path / "model").tokenizer_directory == tmp_path / "model"
    assert not (tmp_path / "model" / "notes.txt").exists()


def test_a_tokenizer_directory_without_a_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        write_checkpoint(
            BASE, random_tensors(BASE).items(), tmp_path / "model", "griffinlm", tokenizer_directory=tmp_path / "empty"
        )
    assert not (tmp_path / "model").exists()
