"""Recorded readings of the originals, so that agreement is tested where their packages are not installed.

A golden is what an original wrote as its checkpoint, and beside it `NAME.safetensors` with conversations: of each call
the tokens and positions, and the original's logits and memory. Its metadata holds our configuration and the versions.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from griffinlm.config import ModelConfig

from .reading import Call, Reader, Reading

DIRECTORY = Path(__file__).parent / "golden"


class Golden:
    """One recorded original."""

    def __init__(self, name: str) -> None:
        self.name = name
        with safe_open(DIRECTORY / f"{name}.safetensors", "pt") as file:
            self.metadata: dict[str, Any] = {key: json.loads(value) for key, value in file.metadata().items()}
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.config = ModelConfig.from_dict(self.metadata["config"])
        self.checkpoint = DIRECTORY / self.metadata["checkpoint"]
        self.conversations: list[str] = list(self.metadata["num_calls"])

    def calls(self, conversation: str) -> Iterator[Call]:
        """The calls that were recorded, in order."""
        for index in range(self.metadata["num_calls"][conversation]):
            yield Call(*(self.tensors[f"{conversation}/{index}/{part}"] for part in Call._fields))


class GoldenReader:
    """Gives the recorded readings of one conversation again."""

    def __init__(self, golden: Golden, conversation: str) -> None:
        self.tensors = golden.tensors
        self.conversation = conversation
        self.index = 0

    def read(self, call: Call) -> Reading:
        """The next recorded reading."""
        prefix = f"{self.conversation}/{self.index}/"
        assert torch.equal(call.tokens, self.tensors[f"{prefix}tokens"]), "not the call that was recorded"
        self.index += 1
        memory = f"{prefix}memory/"
        return Reading(
            self.tensors[f"{prefix}logits"],
            {name.removeprefix(memory): array for name, array in self.tensors.items() if name.startswith(memory)},
        )


def write_golden(
    name: str,
    config: ModelConfig,
    checkpoint: str,
    conversations: Mapping[str, tuple[Reader, Iterable[Call]]],
    versions: Mapping[str, str],
) -> None:
    """Lets readers read conversations and stores what they say; `checkpoint` names a file or folder in DIRECTORY."""
    tensors: dict[str, Tensor] = {}
    num_calls: dict[str, int] = {}
    for conversation, (reader, calls) in conversations.items():
        for index, call in enumerate(calls):
            logits, memory = reader.read(call)
            prefix = f"{conversation}/{index}/"
            tensors.update({f"{prefix}{part}": tensor for part, tensor in call._asdict().items()})
            tensors[f"{prefix}logits"] = logits
            tensors.update({f"{prefix}memory/{key}": array for key, array in memory.items()})
            num_calls[conversation] = index + 1
    metadata = {"config": config.to_dict(), "checkpoint": checkpoint, "num_calls": num_calls, "versions": versions}
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        DIRECTORY / f"{name}.safetensors",
        metadata={key: json.dumps(value) for key, value in metadata.items()},
    )
