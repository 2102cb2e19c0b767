"""Fetching a model from the Hugging Face hub. huggingface_hub is imported when something is fetched."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.errors import CheckpointError, describe
from griffinlm.checkpoint.tokenizer_files import TOKENIZER_FILES

WEIGHT_PATTERNS = ("*.safetensors", "*.pt")
FETCHED_PATTERNS = (*WEIGHT_PATTERNS, "config.json", "model.safetensors.index.json", *TOKENIZER_FILES)


def pull(repo: str, offline: bool = False, revision: str | None = None) -> Path:
    """Downloads weights, configuration and tokenizer of a repository into the hub's cache; returns their directory.

    What is there already is not fetched again, and a download that was cut goes on where it stopped. `offline` looks in
    the cache alone. The hub is the one of HF_ENDPOINT.

    Raises:
        CheckpointError: the repository or the revision does not exist, is gated, holds no weights, or cannot be
            reached, is not in the cache when offline, or the system refuses to write.
    """
    import huggingface_hub

    try:
        with _silent_unless_on_a_terminal():
            directory = Path(
                huggingface_hub.snapshot_download(
                    repo, revision=revision, local_files_only=offline, allow_patterns=list(FETCHED_PATTERNS)
                )
            )
    except Exception as error:
        raise _explained(repo, revision, offline, error) from error
    if not any(any(directory.glob(pattern)) for pattern in WEIGHT_PATTERNS):
        raise CheckpointError(f"{repo} holds no weights: none of its files is {' or '.join(WEIGHT_PATTERNS)}")
    return directory


@contextmanager
def _silent_unless_on_a_terminal() -> Iterator[None]:
    """Without a terminal, keeps huggingface_hub's progress bars and warnings off standard error."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    if sys.stderr.isatty():
        yield
        return
    had_bars, verbosity = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()


def _explained(repo: str, revision: str | None, offline: bool, error: Any) -> CheckpointError:
    """What went wrong in terms of the repository; the order is from the narrowest class of error to the widest."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated: its licence must be accepted first",
            hint="accept the licence on the model's page, then log in with `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo} has no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{repo} does not exist on the hub, or is private",
            hint="for a private repository log in with `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.HFValidationError):
        return CheckpointError(f"{repo!r} is no repository name; it must be OWNER/NAME")
    if isinstance(error, errors.LocalEntryNotFoundError):
        if offline:
            return CheckpointError(f"{repo} is not complete in the cache", hint="run it once without --offline")
        return CheckpointError(f"cannot reach the hub to fetch {repo}", hint="check the network and HF_ENDPOINT")
    return CheckpointError(f"cannot fetch {repo}: {describe(error)}")
