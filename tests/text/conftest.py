"""One tokenizer of each kind, made once."""

from pathlib import Path

import pytest

from griffinlm.text import Tokenizer

from .small_tokenizers import byte_fallback_pipeline, byte_level_pipeline, sentencepiece_model, write_config


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("byte_level")
    byte_level_pipeline().save(str(directory / "tokenizer.json"))
    write_config(directory)
    return directory


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("byte_fallback")
    byte_fallback_pipeline().save(str(directory / "tokenizer.json"))
    write_config(directory)
    return directory


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory) -> Path:
    pytest.importorskip("sentencepiece")
    directory = tmp_path_factory.mktemp("sentencepiece")
    (directory / "tokenizer.model").write_bytes(sentencepiece_model())
    return directory


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback", "sentencepiece"])
def directory(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tokenizer(directory) -> Tokenizer:
    return Tokenizer.from_directory(directory)
