"""PEFT's adapters on the face: found by themselves, exact when merged, and read by the package's own engines."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")
pytest.importorskip("peft", reason="needs the extra train")

import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from small_models import assert_same_logits
from transformers import AutoModelForCausalLM

from griffinlm.checkpoint.adapter import read_low_rank
from griffinlm.hf import GriffinForCausalLM

from .face import CONFIGS, PUBLISHED, random_face, random_rows

GATES = ["rg_lru.input_gate.weight", "rg_lru.recurrence_gate.weight"]


def adapted(face: GriffinForCausalLM, is_trained: bool = True, **options: object) -> PeftModel:
    """The face with a LoRA of rank 2 on every linear; `is_trained` moves B away from zero."""
    torch.manual_seed(0)
    model = get_peft_model(face, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=6, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and is_trained:
            parameter.data.normal_(generator=generator, std=0.1)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_lora_without_target_modules_adapts_every_linear(name: str):
    face = random_face(CONFIGS[name])
    linears = {n for n, module in face.model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = {
        n.removeprefix("base_model.model.model.").partition(".lora_A")[0]
        for n, _ in adapted(face).named_parameters()
        if "lora_A" in n
    }
    assert found == linears


@pytest.mark.parametrize("options", [{}, {"target_parameters": GATES}])
@pytest.mark.parametrize("name", ["published", "ours"])
def test_lora_at_the_start_equals_the_base_and_merged_equals_unmerged(name: str, options: dict, tmp_path: Path):
    (row,) = random_rows(CONFIGS[name], [12])
    with torch.no_grad():
        base = random_face(CONFIGS[name])(row).logits
        assert torch.equal(adapted(random_face(CONFIGS[name]), is_trained=False, **options)(row).logits, base)
        model = adapted(random_face(CONFIGS[name]), **options)
        expected = model(row).logits
        assert (expected - base).abs().max() > 0.01, "the adapter changes nothing"
        model.save_pretrained(tmp_path)
        reloaded = PeftModel.from_pretrained(random_face(CONFIGS[name]), tmp_path).eval()
        assert torch.equal(reloaded(row).logits, expected)
        assert_same_logits(model.merge_and_unload()(row).logits, expected)


def test_an_adapter_of_transformers_own_goes_round(tmp_path: Path):
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [12])
    face.save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded.add_adapter(LoraConfig(r=2, init_lora_weights=False))
    loaded.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = loaded.eval()(row).logits
        assert (expected - face(row).logits).abs().max() > 0.01, "the adapter changes nothing"
        assert torch.equal(again.eval()(row).logits, expected)


def test_every_adapted_gate_receives_a_gradient():
    model = adapted(random_face(PUBLISHED), target_parameters=GATES).train()
    (row,) = random_rows(PUBLISHED, [12])
    model(row, labels=row).loss.backward()
    trained = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum("gate.lora_B" in name and "rg_lru" in name for name in trained) == 2 * 4
    assert all(gradient is not None and gradient.any() for gradient in trained.values())


@pytest.mark.parametrize("options", [{}, {"target_parameters": GATES}])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_package_reads_the_adapter_that_peft_saves(name: str, options: dict, tmp_path: Path):
    if name == "gemma":
        options = {}
    model = adapted(random_face(CONFIGS[name]), **options)
    model.save_pretrained(tmp_path)
    terms = read_low_rank(tmp_path, CONFIGS[name]).terms
    merged, plain = model.merge_and_unload().model, random_face(CONFIGS[name]).model
    changed = {n for n, p in plain.named_parameters() if not torch.equal(p, merged.get_parameter(n))}
    assert changed == set(terms)
    for parameter, term in terms.items():
        product = torch.from_numpy(term.up) @ torch.from_numpy(term.down)
        product = product.mT if product.ndim == 3 else product
        assert_same_logits(plain.get_parameter(parameter) + product, merged.get_parameter(parameter), parameter)


def test_gradient_checkpointing_with_a_frozen_base_equals_without():
    (row,) = random_rows(PUBLISHED, [12])
    gradients = []
    for is_checkpointed in (False, True):
        model = adapted(random_face(PUBLISHED)).train()
        if is_checkpointed:
            model.base_model.model.activation_checkpointing_enable()
        model(row, labels=row).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert all(map(torch.equal, *gradients))


def test_prompt_tuning_trains_virtual_tokens_alone():
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [9])
    embedded = face.get_input_embeddings()
    model = get_peft_model(face, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    prompt = model.get_prompt(1)
    expected = face(inputs_embeds=torch.cat([prompt, embedded(row)], dim=1)).logits
    found = model(input_ids=row, attention_mask=torch.ones_like(row))
    assert_same_logits(found.logits, expected)
    model.train()(input_ids=row, attention_mask=torch.ones_like(row), labels=row).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "prompt_encoder.default.embedding.weight"
    ]
