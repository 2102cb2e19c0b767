"""Our model and transformers' RecurrentGemma and Gemma are one function, through checkpoints in both directions.

RecurrentGemma is compared where transformers is right: one unpadded prompt on a fresh model, its window set one longer,
because it counts the query's own token (see `huggingface`).
"""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs tests/parity/requirements.txt")

import torch

from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.presets import bfloat16_sqrt

from . import models
from .conversations import conversation, prefill
from .huggingface import HuggingFaceReader, load_original, save_original
from .models import GriffinReader, griffin, random_tensors
from .reading import BOUND, assert_agreement, deviation

pytestmark = pytest.mark.parity

CONFIGS = {
    "recurrentgemma": models.RECURRENTGEMMA,
    "wide recurrence": dataclasses.replace(
        models.GRIFFIN_WIDE_RECURRENCE, embedding_scale=bfloat16_sqrt(24), logit_soft_cap=20.0
    ),
    "ends in attention": models.ENDS_IN_ATTENTION,
    "gemma": models.GEMMA,
}
FORWARD_CONFIGS = {**CONFIGS, "hawk": dataclasses.replace(models.HAWK, embedding_scale=bfloat16_sqrt(16))}
"""transformers computes a model without attention, but cannot keep its memory."""
CAPACITY = 64
"""Of Gemma's state; more than any conversation here."""


@pytest.fixture(params=["we write and transformers reads", "transformers writes and we read"])
def pair(request: pytest.FixtureRequest, config_name: str, tmp_path: Path):
    """Our model and theirs with the same weights, carried by a directory that one side wrote and the other read."""
    config, directory = FORWARD_CONFIGS[config_name], tmp_path / "model"
    if request.param == "we write and transformers reads":
        tensors = list(random_tensors(config, seed=1))
        write_checkpoint(config, tensors, directory, "huggingface")
        return griffin(config, tensors), load_original(config, directory)
    save_original(config, directory, seed=2)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config == config
    return griffin(config, checkpoint.tensors()), load_original(config, directory)


@pytest.mark.parametrize("config_name", FORWARD_CONFIGS)
def test_full_forward_equals_transformers_at_every_length(pair, config_name: str):
    ours, theirs = pair
    call = prefill([[37]], FORWARD_CONFIGS[config_name].vocab_size, seed=3)
    for num_tokens in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 37):
        tokens = call.tokens[:, :num_tokens]
        with torch.no_grad():
            expected = theirs(tokens, use_cache=False).logits
            assert deviation(ours(tokens)[0], expected) <= BOUND, num_tokens


@pytest.mark.parametrize("num_prompt_tokens", [2, 7, 8, 9, 25])
@pytest.mark.parametrize("config_name", CONFIGS)
def test_prefill_and_decoding_equal_transformers(pair, config_name: str, num_prompt_tokens: int):
    ours, theirs = pair
    config = CONFIGS[config_name]
    assert config.attention is not None
    num_rows = 2 if config.needs_capacity else 1
    calls = conversation([[num_prompt_tokens]] * num_rows, num_steps=20, vocab_size=config.vocab_size)
    reader = GriffinReader(ours, CAPACITY if config.needs_capacity else None)
    original = HuggingFaceReader(theirs, config.attention.window_tokens or CAPACITY)
    assert_agreement(reader, original, calls)
