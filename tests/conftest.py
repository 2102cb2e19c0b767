"""How property tests run: `HYPOTHESIS_PROFILE=ci` for 200 fixed examples a property, `explore` for many new ones.

And the small models that several rooms test with.
"""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import ModelConfig

pytest_plugins = ["skips"]

# Small models run fastest on one thread, and several threads on a busy machine wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("quick", max_examples=25, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=100, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("explore", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

CONTROL_TOKENS = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
SAMPLE_TEXT = "the hawk and the griffin are older than the hill they hunt over, and they do not grow"
TINY_VOCAB_SIZE = 288
"""All bytes, the control tokens and a few merges, so that a text can be cut in several ways."""


def write_tiny_tokenizer(directory: Path) -> None:
    """A byte-level tokenizer with Gemma's turns, whose chat template is the default one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=1,
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT], trainer)
    assert tokenizer.get_vocab_size() == TINY_VOCAB_SIZE
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


def write_tiny_model(directory: Path, preset: str = "tiny-griffin", tokenizer_directory: Path | None = None) -> Path:
    """A model with initial values of seed 0, its vocabulary that of the tiny tokenizer."""
    config = dataclasses.replace(ModelConfig.preset(preset), vocab_size=TINY_VOCAB_SIZE)
    write_checkpoint(config, initial_tensors(config, 0), directory, "griffinlm", None, tokenizer_directory)
    return directory


@pytest.fixture(scope="session")
def tiny_tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_directory: Path) -> Path:
    """A Griffin with tokenizer and chat template. Not to be written to."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "griffin", "tiny-griffin", tiny_tokenizer_directory)


@pytest.fixture(scope="session")
def tiny_model_without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same Griffin, with token ids only. Not to be written to."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "mute")


@pytest.fixture(scope="session")
def tiny_gemma_directory(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_directory: Path) -> Path:
    """A model with global attention, tokenizer and chat template. Not to be written to."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "gemma", "tiny-gemma", tiny_tokenizer_directory)
