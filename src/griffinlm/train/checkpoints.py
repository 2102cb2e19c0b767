"""Checkpoints of a run: complete or absent, sharded over processes, read by any number of them."""

import contextlib
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from griffinlm.checkpoint import CheckpointError
from griffinlm.checkpoint.errors import describe
from griffinlm.checkpoint.new_directory import new_directory, remove_abandoned
from griffinlm.train.errors import TrainError
from griffinlm.train.sharding import barrier, rank, world_size

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
TENSORS = "tensors"
"""Folder of a checkpoint that holds the shards of weights and optimizer."""


class Checkpoints:
    """The directory of a run's checkpoints, `step-N` each.

    A checkpoint is written under a temporary name, flushed to the disk and renamed; its manifest has the SHA-256 of
    every file.
    """

    def __init__(self, directory: Path, num_kept: int) -> None:
        self.directory, self._num_kept = directory, num_kept

    def last(self) -> Path | None:
        """The newest checkpoint; None where there is none."""
        found = self._by_step()
        return found[max(found)] if found else None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        facts: dict[str, Any],
        write_rest: Callable[[Path], None],
    ) -> None:
        """Writes weights and optimizer, each process its shards, then removes all but the newest checkpoints.

        Args:
            facts: JSON values that the manifest keeps, for whoever resumes.
            write_rest: writes further files into the directory; every process calls it.

        Raises:
            CheckpointError: the system refuses to write; the checkpoints before are as they were.
        """
        destination = self.directory / f"step-{step}"
        with self._shared_directory(destination) as directory:
            weights, moments = get_state_dict(model, optimizer)
            with _as_checkpoint_error(f"cannot write {destination}"):
                save(
                    {"model": weights, "optimizer": moments},
                    checkpoint_id=directory / TENSORS,
                    no_dist=world_size() == 1,
                )
                write_rest(directory)
                barrier()  # the first process reads what the others wrote beside their shards
                digests = _gathered(_digests_of_own(directory))
                if rank() == 0:
                    manifest = {"format_version": FORMAT_VERSION, "step": step, **facts, "files": digests}
                    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if rank() == 0:
            self._remove_old()

    def load(self, path: Path, model: nn.Module, optimizer: Optimizer) -> None:
        """Fills model and optimizer from a checkpoint of any number of processes.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        weights, moments = get_state_dict(model, optimizer)
        content = {"model": weights, "optimizer": moments}
        with _as_checkpoint_error(f"cannot read {path}"):
            load(content, checkpoint_id=path / TENSORS)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)

    @contextlib.contextmanager
    def _shared_directory(self, destination: Path) -> Iterator[Path]:
        """`new_directory` of the first process, for all of them."""
        with new_directory(destination) if rank() == 0 else contextlib.nullcontext(Path()) as made:
            shared: list[Any] = [made]
            if world_size() > 1:
                dist.broadcast_object_list(shared, src=0)
            yield shared[0]

    def _by_step(self) -> dict[int, Path]:
        if not self.directory.is_dir():
            return {}
        matches = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in self.directory.iterdir())
        return {int(match[1]): path for match, path in matches if match and (path / MANIFEST).is_file()}

    def _remove_old(self) -> None:
        """A checkpoint loses its name before its files, so that none is ever incomplete."""
        found = self._by_step()
        for step in sorted(found)[: -self._num_kept]:
            hidden = found[step].with_name(f".{found[step].name}.removed")
            with contextlib.suppress(OSError):
                found[step].rename(hidden)
        for path in self.directory.glob(".step-*.removed"):
            shutil.rmtree(path, ignore_errors=True)
        remove_abandoned(self.directory, r"step-\d+")


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, after a look at the SHA-256 of its files.

    Raises:
        TrainError: the manifest is damaged or of another version, or a file differs from what it says.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        version, files = manifest["format_version"], dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TrainError(f"{path / MANIFEST} cannot be read: {describe(error)}") from error
    if version != FORMAT_VERSION:
        raise TrainError(f"{path} has format_version {version!r}; this version of griffinlm reads {FORMAT_VERSION}")
    for name, digest in files.items():
        if not (path / name).is_file() or _digest(path / name) != digest:
            raise TrainError(
                f"checkpoint {path} is damaged: {name} differs from its manifest",
                hint="remove that directory to go on from the checkpoint before",
            )
    return manifest


def require_same_run(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Refuses to go on from what was written with another value of a fact in the manifest's `run`.

    Raises:
        TrainError: it was, or `read_manifest` raises it.
    """
    found = read_manifest(checkpoint).get("run")
    differing = [name for name, value in facts.items() if not isinstance(found, dict) or found.get(name) != value]
    if differing:
        raise TrainError(
            f"{checkpoint} belongs to a run with another {', another '.join(differing)}",
            hint="give a new output directory, or the configuration that the run began with",
        )


def _digests_of_own(directory: Path) -> dict[str, str]:
    """Digests of the files that this process has written: its shards, in the first process all other files too."""
    files = (path for path in directory.rglob("*") if path.is_file())
    shard = re.compile(r"__(\d+)_\d+\.distcp")
    own: dict[str, str] = {}
    for path in files:
        match = shard.fullmatch(path.name)
        if (int(match[1]) if match else 0) == rank():
            own[path.relative_to(directory).as_posix()] = _digest(path)
    return own


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _gathered(own: dict[str, str]) -> dict[str, str]:
    """The entries of all processes, in the order of their names."""
    parts: list[Any] = [own]
    if world_size() > 1:
        parts = [None] * world_size()
        dist.all_gather_object(parts, own)
    return dict(sorted((name, digest) for part in parts for name, digest in part.items()))


@contextlib.contextmanager
def _as_checkpoint_error(what: str) -> Iterator[None]:
    """Turns what torch's writers and readers raise, whose common class is BaseException, into a CheckpointError."""
    try:
        with warnings.catch_warnings():
            # A run on one device is meant to be one.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        cause = next(iter(error.failures.values()), None)
        reason = describe(cause[0]) if cause else "unknown"
        raise CheckpointError(f"{what}: {reason}") from error
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{what}: {describe(error)}") from error
