"""transformers' own tests of every model run against ours; each one left out has its reason here."""

import dataclasses
import re
import unittest
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs the extra train")
pytest.importorskip("parameterized", reason="needs parameterized")

import torch
from transformers.models.auto import modeling_auto

from griffinlm.hf import GriffinConfig, GriffinForCausalLM, GriffinForSequenceClassification, GriffinModel

from .common_tests import common_tests, fetch
from .face import PUBLISHED

OWN_BLOCKS = "the blocks are no layers of transformers; test_model.py has checkpointing on = off"
ALWAYS_TIED = "the head is always the embedding"
OWN_ERROR = "weights that do not fit are a CheckpointError; test_directories.py"
PUBLISHED_FORM = "config.json has the published form, whose fields are no arguments of the configuration"
SKIPPED = {
    "test_config_attn_implementation_setter": PUBLISHED_FORM,
    "test_model_forward_default_config_values": PUBLISHED_FORM,
    "test_load_save_without_tied_weights": ALWAYS_TIED,
    "test_resize_embeddings_untied": ALWAYS_TIED,
    "test_resize_embeddings_untied_no_reinit_on_post_init": ALWAYS_TIED,
    "test_model_weights_reload_no_missing_tied_weights": OWN_ERROR,
    "test_load_with_mismatched_shapes": OWN_ERROR,
    "test_can_load_ignoring_mismatched_shapes": OWN_ERROR,
    "test_gradient_checkpointing_enable_disable": OWN_BLOCKS,
    "test_training_gradient_checkpointing": OWN_BLOCKS,
    "test_training_gradient_checkpointing_use_reentrant_false": OWN_BLOCKS,
    "test_training_gradient_checkpointing_use_reentrant_true": OWN_BLOCKS,
    "test_generation_tester_mixin_inheritance": "generation's common tests are not in the source distribution",
    "test_reverse_loading_mapping": "files are written from the checkpoint's table of names; test_directories.py",
}
CONFIG = dataclasses.replace(PUBLISHED, num_layers=2, block_pattern=("recurrent", "local_attention"))


class Inputs:
    """The model and the inputs that the common tests ask for."""

    is_training = True
    batch_size, seq_length = 3, 7
    hidden_size, num_hidden_layers = CONFIG.width, CONFIG.num_layers

    def prepare_config_and_inputs_for_common(self) -> tuple[GriffinConfig, dict[str, torch.Tensor]]:
        config = GriffinConfig.from_model_config(CONFIG, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        tokens = torch.randint(3, CONFIG.vocab_size, (self.batch_size, self.seq_length))
        return config, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def case_of(mixin: type[Any]) -> type[unittest.TestCase]:
    class CommonTests(mixin, unittest.TestCase):
        all_model_classes = (GriffinModel, GriffinForCausalLM, GriffinForSequenceClassification)
        has_attentions = False

        def setUp(self) -> None:
            self.model_tester = Inputs()

    for name, reason in SKIPPED.items():
        setattr(CommonTests, name, unittest.skip(reason)(getattr(CommonTests, name)))
    return CommonTests


@pytest.mark.slow
def test_transformers_common_tests_pass(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    folder = fetch(request.config.cache.mkdir("transformers"))
    source = (folder / "test_modeling_common.py").read_text(encoding="utf-8")
    for marker in set(re.findall(r"mark\.(\w+)", source)):
        request.config.addinivalue_line("markers", f"{marker}: of transformers' own tests")
    # Here the tests look up what a class is for.
    monkeypatch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "griffinlm", "GriffinModel")
    monkeypatch.setitem(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "griffinlm", "GriffinForCausalLM")
    monkeypatch.setitem(
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "griffinlm", "GriffinForSequenceClassification"
    )
    suite, result = (
        unittest.defaultTestLoader.loadTestsFromTestCase(case_of(common_tests(folder))),
        unittest.TestResult(),
    )
    suite.run(result)
    print(f"{result.testsRun} tests, of which {len(result.skipped)} were skipped:")
    for test, reason in result.skipped:
        print(f"{test.id().rpartition('.')[2]}: {reason}")
    faults = [f"{test.id()}\n{trace}" for test, trace in result.errors + result.failures]
    assert not faults, "\n".join(faults)
    assert result.testsRun - len(result.skipped) > 50
