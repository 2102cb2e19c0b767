"""The servers that are compared: their files, how each is started, and the words that it is asked with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tokenizers
from peers.characters import CONTROL, letters, vocabulary
from peers.programs import GRIFFIN, PROBE, run_lines
from tokenizers import decoders, models

from griffinlm.config import ModelConfig
from griffinlm.evaluate.benchmark_weights import random_checkpoint

from .chats import STORY

CONTEXT_TOKENS = 4096
"""More than any chat has; llama.cpp must be told."""


@dataclass(frozen=True)
class Server:
    """A server with one model in one precision."""

    name: str
    model: str
    weights: str
    threads: int
    load: int = 1
    """How many times the chats of the others it is given: what is faster needs more to be measured."""

    package: ClassVar[str]
    has_responses: ClassVar[bool]
    """Whether it keeps responses that later ones name."""

    @property
    def words(self) -> tuple[Sequence[str], str]:
        """Words that are a token each, and what stands between them."""
        return letters(ModelConfig.preset(self.model).vocab_size), ""

    def version(self, python: str) -> str:
        """Version of the package that `python` would run; RunError where it lacks it."""
        raise NotImplementedError

    def prepare(self, python: str, work: Path) -> Path:
        """Writes the model's files where they are not there yet; gives what the command reads."""
        raise NotImplementedError

    def command(self, python: str, model: Path, port: int) -> list[str]:
        raise NotImplementedError


class Griffin(Server):
    """This package, as its users start it: the bundled model in float32, or random quantized weights of a preset."""

    package, has_responses = "griffinlm", True

    @property
    def is_random(self) -> bool:
        return self.weights != "float32"

    @property
    def words(self) -> tuple[Sequence[str], str]:
        return super().words if self.is_random else (STORY.split(), " ")

    def version(self, python: str) -> str:
        return run_lines([python, "-c", PROBE, "griffinlm", "griffinlm.serve.run", "onnxruntime"])[0]["version"]

    def prepare(self, python: str, work: Path) -> Path:
        if not self.is_random:
            return Path(self.model)
        checkpoint = random_checkpoint(self.model, "onnx", self.weights)
        directory = work / f"{self.model}-{self.weights}"
        directory.mkdir(exist_ok=True)
        for file in checkpoint.path.iterdir():
            link = directory / file.name
            link.unlink(missing_ok=True)
            link.symlink_to(file.resolve())
        write_tokenizer(checkpoint.config.vocab_size, directory / "tokenizer.json")
        return directory

    def command(self, python: str, model: Path, port: int) -> list[str]:
        options = {"model": model, "port": port, "threads": self.threads}
        return [python, "-c", GRIFFIN, "serve", *(f"--{name}={value}" for name, value in options.items())]


class LlamaCpp(Server):
    """llama.cpp's server in Python, which answers one request after the other. It may not break off streams."""

    package, has_responses = "llama_cpp", False
    vocab_sizes: ClassVar = {"gemma-2b": 256_000, "tiny-gemma": 512}

    @property
    def words(self) -> tuple[Sequence[str], str]:
        return letters(self.vocab_sizes[self.model]), ""

    def version(self, python: str) -> str:
        return run_lines([python, "-c", PROBE, "llama_cpp_python", "llama_cpp.server.app", "gguf"])[0]["version"]

    def prepare(self, python: str, work: Path) -> Path:
        path = work / f"{self.model}-{self.weights}-characters.gguf"
        if not path.exists():
            run_lines([python, "-m", "peers.gguf_models", self.model, self.weights, str(path), "characters"])
        return path

    def command(self, python: str, model: Path, port: int) -> list[str]:
        options = {
            "model": model,
            "host": "127.0.0.1",
            "port": port,
            "n_ctx": CONTEXT_TOKENS,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "chat_format": "gemma",
            # With all logits kept, memory for the longest context times the vocabulary is taken.
            "logits_all": False,
            "interrupt_requests": False,
            "verbose": False,
        }
        command = [python, "-m", "llama_cpp.server"]
        return command + [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def all_servers(threads: int, smoke: bool) -> tuple[Server, ...]:
    """Everything that is compared. `smoke` takes models so small that all of it runs in seconds."""
    ours, theirs = ("eyas", "tiny-gemma") if smoke else ("recurrentgemma-2b", "gemma-2b")
    return (
        Griffin("griffin eyas", "eyas", "float32", threads, load=1 if smoke else 10),
        Griffin("griffin int4", ours, "int4", threads),
        LlamaCpp("llama.cpp Gemma Q4_0", theirs, "Q4_0", threads),
        Griffin("griffin int8", ours, "int8", threads),
        LlamaCpp("llama.cpp Gemma Q8_0", theirs, "Q8_0", threads),
    )


def write_tokenizer(vocab_size: int, path: Path) -> None:
    """A tokenizer.json in which a character is a token."""
    ids = {token: number for number, token in enumerate(vocabulary(vocab_size))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.save(str(path), pretty=False)
