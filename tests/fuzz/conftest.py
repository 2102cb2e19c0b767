"""A model as small as can be, in every container; a command line whose memory is bounded."""

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine

import griffinlm.loading
from griffinlm.checkpoint import initial_tensors, write_checkpoint
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.presets import bfloat16_sqrt

CONFIG = ModelConfig(
    vocab_size=288,
    width=8,
    num_layers=2,
    block_pattern=("recurrent", "local_attention"),
    mlp_hidden=8,
    recurrent=RecurrentConfig(width=12, num_gate_blocks=2),
    attention=AttentionConfig(num_heads=2, head_size=4, window_tokens=5),
    embedding_scale=bfloat16_sqrt(8),
    logit_soft_cap=30.0,
)
MEMORY_BYTES = 4 << 30


@pytest.fixture
def griffin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return CommandLine(capsys, monkeypatch)


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_directory: Path) -> Path:
    """A directory with the model as `whole` (ours), `shards` (Hugging Face's) and `pickle` (DeepMind's)."""
    root = tmp_path_factory.mktemp("containers")
    for name, form, shard_bytes in [
        ("whole", "griffinlm", 1 << 30),
        ("shards", "huggingface", 8000),
        ("pickle", "deepmind", 1),
    ]:
        write_checkpoint(
            CONFIG, initial_tensors(CONFIG, 0), root / name, form, None, tiny_tokenizer_directory, shard_bytes
        )
    assert (root / "shards" / "model.safetensors.index.json").exists()
    return root


@pytest.fixture
def directory(containers: Path, tmp_path: Path) -> Path:
    """A copy of the containers to damage."""
    return Path(shutil.copytree(containers, tmp_path / "containers"))


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models stay loaded between command lines: what is damaged is something else."""
    monkeypatch.setattr("griffinlm.loading.load", functools.cache(griffinlm.loading.load))


@pytest.fixture(autouse=True, scope="module")
def bounded_memory() -> Iterator[None]:
    """What asks for more than a few gigabytes fails as on a full machine, instead of filling this one."""
    resource = pytest.importorskip("resource", reason="this system has no limits on memory")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
