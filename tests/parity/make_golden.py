"""Records tests/parity/golden anew from the original packages. Run it in `tests`: python -m parity.make_golden."""

from importlib.metadata import version

import torch

from griffinlm.config import ModelConfig

from . import models
from .conversations import conversation
from .deepmind import DeepMindReader, random_original
from .golden import DIRECTORY, write_golden
from .huggingface import HuggingFaceReader, load_original, save_original

GEMMA_CAPACITY = 24


def versions(*packages: str) -> dict[str, str]:
    return {name: version(name) for name in ("torch", *packages)}


def make_deepmind(name: str, config: ModelConfig, seed: int) -> None:
    model = random_original(config, seed)
    torch.save(model.state_dict(), DIRECTORY / f"{name}.pt")
    packed = conversation([[5, 1, 2, 7], [3, 10], [9]], num_steps=18, vocab_size=config.vocab_size, seed=seed)
    long = conversation([[27]], num_steps=9, vocab_size=config.vocab_size, seed=seed)
    write_golden(
        name,
        config,
        f"{name}.pt",
        {
            "packed documents and padding": (DeepMindReader(model), packed),
            "longer than the window": (DeepMindReader(model), long),
        },
        versions("recurrentgemma"),
    )


def make_huggingface(name: str, config: ModelConfig, seed: int) -> None:
    assert config.attention is not None
    directory = DIRECTORY / name
    save_original(config, directory, seed)
    capacity = config.attention.window_tokens or GEMMA_CAPACITY
    short = conversation([[3]], num_steps=18, vocab_size=config.vocab_size, seed=seed)
    long = conversation([[17]], num_steps=7, vocab_size=config.vocab_size, seed=seed)
    write_golden(
        name,
        config,
        name,
        {
            "short prompt": (HuggingFaceReader(load_original(config, directory), capacity), short),
            "long prompt": (HuggingFaceReader(load_original(config, directory), capacity), long),
        },
        versions("transformers"),
    )


if __name__ == "__main__":
    make_deepmind("deepmind-recurrentgemma", models.RECURRENTGEMMA, seed=11)
    make_deepmind("deepmind-griffin", models.GRIFFIN_WIDE_RECURRENCE, seed=12)
    make_huggingface("transformers-recurrentgemma", models.RECURRENTGEMMA, seed=13)
    make_huggingface("transformers-gemma", models.GEMMA, seed=14)
