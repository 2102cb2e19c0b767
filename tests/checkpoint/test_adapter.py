"""A directory that PEFT wrote is read as the terms that it means; any other is refused in one line."""

import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from adapters import ALPHA, adaptable, random_factors, settings, tensors_of, write_adapter, write_files
from safetensors.numpy import load_file

from griffinlm.checkpoint import CheckpointError
from griffinlm.checkpoint.adapter import LowRank, read_low_rank
from griffinlm.checkpoint.names import entries
from griffinlm.config import ModelConfig

from .models import GEMMA, GRIFFINS

GRIFFIN = GRIFFINS["ends in attention"]
GATE = "layers.0.recurrent.rg_lru.input_gate.weight"
PREFIX = "base_model.model.model."
UP = f"{PREFIX}layers.0.mlp.up"


def product(term: LowRank) -> np.ndarray:
    """The matrix that a term adds, in the parameter's own layout."""
    if term.down.ndim == 2:
        return term.up.astype(np.float64) @ term.down
    return np.einsum("hri,hjr->hij", term.down.astype(np.float64), term.up)


def assert_adds(terms, factors, scaling: float, shapes) -> None:
    assert list(terms) == [name for name in shapes if name in factors]
    for name, term in terms.items():
        np.testing.assert_allclose(product(term), factors[name].delta(shapes[name], scaling), rtol=1e-5, atol=1e-6)
        assert term.down.dtype == term.up.dtype == np.float32


def refusal(directory: Path, config: ModelConfig = GRIFFIN) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_low_rank(directory, config)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("config", [*GRIFFINS.values(), GEMMA], ids=[*GRIFFINS, "gemma"])
def test_every_matrix_under_our_names_is_read(config, tmp_path):
    factors = random_factors(config, 0)
    assert list(factors) == adaptable(config)
    terms = read_low_rank(write_adapter(tmp_path / "a", config, factors), config).terms
    assert_adds(terms, factors, ALPHA / 2, config.parameter_shapes())


def published(config: ModelConfig, factors) -> tuple[dict, list[str]]:
    """The tensors under the published model's names, where the two gates are parameters of one module."""
    theirs = {entry.ours[0]: entry.theirs for entry in entries("recurrent_gemma", config)}
    renamed, targets = {}, []
    for name, values in factors.items():
        module = theirs[name].removesuffix(".weight")
        if "rg_lru" in name:
            targets.append(theirs[name])
            module = module.rpartition(".")[0] + (".base_layer" if "input_gate" in name else "")
        renamed[module] = values
    return tensors_of(renamed, "base_model.model."), targets


def test_published_names_mean_the_same_as_ours(tmp_path):
    """Gates of one module are nested in the order of its parameters, the last one outside."""
    factors = random_factors(GRIFFIN, 0)
    tensors, targets = published(GRIFFIN, factors)
    targets = sorted({".".join(target.split(".")[-2:]) for target in targets}, reverse=True)
    assert targets == ["rg_lru.recurrent_gate_weight", "rg_lru.input_gate_weight"]
    theirs = read_low_rank(write_files(tmp_path / "a", settings(2, target_parameters=targets), tensors), GRIFFIN)
    ours = read_low_rank(write_adapter(tmp_path / "b", GRIFFIN, factors), GRIFFIN)
    assert theirs.digest() == ours.digest()


def test_one_gate_of_a_published_module_is_not_nested(tmp_path):
    factors = random_factors(GRIFFIN, 0, endings=("recurrence_gate",))
    tensors, _ = published(GRIFFIN, factors)
    fields = settings(2, target_parameters=["rg_lru.recurrent_gate_weight"])
    assert_adds(
        read_low_rank(write_files(tmp_path / "a", fields, tensors), GRIFFIN).terms,
        factors,
        ALPHA / 2,
        GRIFFIN.parameter_shapes(),
    )


def test_names_without_the_wrapper_mean_the_same(tmp_path):
    factors = random_factors(GRIFFIN, 0)
    bare = write_files(tmp_path / "a", settings(2), tensors_of(factors, "base_model.model."))
    wrapped = write_adapter(tmp_path / "b", GRIFFIN, factors)
    assert read_low_rank(bare, GRIFFIN).digest() == read_low_rank(wrapped, GRIFFIN).digest()


def test_scaling_is_alpha_over_rank_or_over_its_root(tmp_path):
    factors = random_factors(GRIFFIN, 0, rank=4)
    for is_rank_stabilized, scaling in ((False, ALPHA / 4), (True, ALPHA / math.sqrt(4))):
        directory = write_adapter(tmp_path / "a", GRIFFIN, factors, 4, use_rslora=is_rank_stabilized)
        assert_adds(read_low_rank(directory, GRIFFIN).terms, factors, scaling, GRIFFIN.parameter_shapes())


def test_patterns_choose_rank_and_alpha_of_the_modules_that_they_match(tmp_path):
    down, up = random_factors(GRIFFIN, 0, 3, (".mlp.down",)), random_factors(GRIFFIN, 1, 2, (".mlp.up",))
    gate = random_factors(GRIFFIN, 2, 5, ("0.recurrent.rg_lru.input_gate",))
    alphas = {r"layers\.0\.mlp\.up": 7.0, "up": 5.0, "rg_lru.input_gate.weight": 1.5}
    directory = write_adapter(
        tmp_path / "a",
        GRIFFIN,
        down | up | gate,
        rank_pattern={"down": 3, ".*input_gate.weight": 5},
        alpha_pattern=alphas,
    )
    shapes, terms = GRIFFIN.parameter_shapes(), read_low_rank(directory, GRIFFIN).terms
    for name, factors in (down | up | gate).items():
        alpha = 7.0 if name == "layers.0.mlp.up.weight" else {"up": 5.0, "down": ALPHA}.get(name.split(".")[-2], 1.5)
        rank = 5 if name == GATE else len(factors.a)
        expected = factors.delta(shapes[name], alpha / rank)
        np.testing.assert_allclose(product(terms[name]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_numbers_of_any_weight_type_are_read_as_they_are(dtype, tmp_path):
    factors = {
        name: one._replace(a=one.a.astype(dtype), b=one.b.astype(dtype))
        for name, one in random_factors(GRIFFIN, 0).items()
    }
    exact = {
        name: one._replace(a=one.a.astype(np.float32), b=one.b.astype(np.float32)) for name, one in factors.items()
    }
    terms = read_low_rank(write_adapter(tmp_path / "a", GRIFFIN, factors), GRIFFIN).terms
    assert_adds(terms, exact, ALPHA / 2, GRIFFIN.parameter_shapes())


def test_digest_is_that_of_the_function(tmp_path):
    factors = random_factors(GRIFFIN, 0)
    digest = read_low_rank(write_adapter(tmp_path / "a", GRIFFIN, factors), GRIFFIN).digest()
    assert read_low_rank(write_adapter(tmp_path / "b", GRIFFIN, factors, revision="x"), GRIFFIN).digest() == digest
    assert read_low_rank(write_adapter(tmp_path / "c", GRIFFIN, factors, lora_alpha=4), GRIFFIN).digest() != digest
    few = dict(list(factors.items())[:-1])
    assert read_low_rank(write_adapter(tmp_path / "d", GRIFFIN, few), GRIFFIN).digest() != digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; it must be LORA"),
        ({"use_dora": True}, "use_dora is True; it is not supported"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save is ['embed_tokens']; it is not supported"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"bias": "lora_only"}, "bias is trained; it must be none"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the model's own weights"),
        ({"a_later_field": 1}, "a_later_field is 1; it is not supported"),
        ({"r": 0}, "r is 0; it must be a whole number in 1..65536"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"use_rslora": 1}, "use_rslora is 1; it must be true or false"),
        ({"rank_pattern": {"up": 0}}, "rank_pattern must be a table"),
        ({"alpha_pattern": {"(a*)*b": 1.0}}, "alpha_pattern has the pattern '(a*)*b', which cannot be used"),
        ({"alpha_pattern": {"[": 1.0}}, "alpha_pattern has the pattern '['"),
        ({"target_parameters": "up.weight"}, "target_parameters is 'up.weight'; it must be a list of names"),
        ({"target_parameters": ["rg_lru.a_param"]}, "which is no matrix of a product"),
        ({"target_parameters": ["conv.weight"]}, "which is no matrix of a product"),
        ({"target_parameters": ["embedding.weight"]}, "which is no matrix of a product"),
        ({"target_parameters": ["nowhere.weight"]}, "'nowhere.weight', which the model does not have"),
    ],
)
def test_other_kinds_and_odd_values_are_refused_by_name(changes, said, tmp_path):
    assert said in refusal(write_adapter(tmp_path / "a", GRIFFIN, random_factors(GRIFFIN, 0), **changes))


def test_all_faults_of_a_configuration_are_named_at_once(tmp_path):
    directory = write_adapter(tmp_path / "a", GRIFFIN, random_factors(GRIFFIN, 0), r=-1, bias="all", use_dora=True)
    with pytest.raises(CheckpointError) as caught:
        read_low_rank(directory, GRIFFIN)
    assert len(caught.value.faults) == 3


def test_tensors_that_fit_nowhere_are_refused_by_name(tmp_path):
    sound = tensors_of(random_factors(GRIFFIN, 0))
    a, b = sound[f"{UP}.lora_A.weight"], sound[f"{UP}.lora_B.weight"]
    cases = {
        "lora_A.weight is missing, expected [2, 24]": {f"{UP}.lora_A.weight": None},
        "lora_B.weight is missing, expected [28, 2]": {f"{UP}.lora_B.weight": None},
        "lora_A.weight is [2, 23] float32, expected [2, 24]": {f"{UP}.lora_A.weight": a[:, 1:]},
        "lora_A.weight is [1, 24] float32, expected [2, 24]": {f"{UP}.lora_A.weight": a[1:]},
        "lora_B.weight is [28, 2] float64, expected": {f"{UP}.lora_B.weight": b.astype(np.float64)},
        "lora_A.weight holds NaN": {f"{UP}.lora_A.weight": np.full_like(a, np.nan)},
        "lora_magnitude_vector is unexpected, found [28]": {f"{UP}.lora_magnitude_vector": np.ones(28, np.float32)},
        "lora_embedding_A is unexpected": {f"{PREFIX}embedding.lora_embedding_A": np.ones((2, 37), np.float32)},
        "lm_head.lora_A.weight is unexpected": {"base_model.model.lm_head.lora_A.weight": a},
        "layers.9.mlp.up.lora_A.weight is unexpected": {f"{PREFIX}layers.9.mlp.up.lora_A.weight": a},
        "conv.lora_A.weight is unexpected": {f"{PREFIX}layers.0.recurrent.conv.lora_A.weight": a},
        "two terms of one matrix": {
            f"base_model.model.layers.0.mlp.up.lora_{side}.weight": values for side, values in (("A", a), ("B", b))
        },
    }
    for said, changes in cases.items():
        tensors = {name: values for name, values in (sound | changes).items() if values is not None}
        assert said in refusal(write_files(tmp_path / "a", settings(2), tensors)), said
    assert "it holds no tensors" in refusal(write_files(tmp_path / "a", settings(2), {}))


def test_scaling_out_of_range_is_refused(tmp_path):
    factors = {name: one._replace(b=one.b * np.float32(1e37)) for name, one in random_factors(GRIFFIN, 0).items()}
    assert "out of the range of float32" in refusal(write_adapter(tmp_path / "a", GRIFFIN, factors, lora_alpha=1e6))


def test_adapter_of_another_model_is_refused(tmp_path):
    directory = write_adapter(tmp_path / "a", GRIFFIN, random_factors(GRIFFIN, 0))
    assert "expected [2, 20]" in refusal(directory, dataclasses.replace(GRIFFIN, width=20))
    assert "which the model does not have" in refusal(directory, GEMMA)


def test_missing_files_and_pickles_are_refused(tmp_path):
    directory = write_adapter(tmp_path / "a", GRIFFIN, random_factors(GRIFFIN, 0))
    tensors = directory / "adapter_model.safetensors"
    tensors.rename(directory / "adapter_model.bin")
    assert "holds adapter_model.bin, a pickle" in refusal(directory)
    (directory / "adapter_model.bin").unlink()
    assert "it has no adapter_model.safetensors" in refusal(directory)
    (directory / "adapter_config.json").unlink()
    assert "it has no adapter_config.json and no adapter_model.safetensors" in refusal(directory)


def test_fields_of_an_older_peft_may_be_missing(tmp_path):
    factors = random_factors(GRIFFIN, 0, endings=(".mlp.up",))
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": ALPHA}
    directory = write_files(tmp_path / "a", fields, tensors_of(factors))
    assert_adds(read_low_rank(directory, GRIFFIN).terms, factors, ALPHA / 2, GRIFFIN.parameter_shapes())
    assert json.loads((directory / "adapter_config.json").read_text()) == fields
    assert len(load_file(directory / "adapter_model.safetensors")) == 2 * GRIFFIN.num_layers
