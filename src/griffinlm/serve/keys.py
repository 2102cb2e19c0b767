"""Secrets from files: API keys, of which each is a tenant, and the key that states are signed with."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from griffinlm.serve.errors import ServeError

LEAST_KEY_CHARACTERS = 8
MOST_KEYS = 10_000
STATE_KEY_FILE, STATE_KEY_BYTES = "state.key", 32
LOCAL_TENANT = "local"
"""Who asks where there are no keys."""


class ApiKeys:
    """The keys that are let in. No key itself is kept."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def from_file(cls, path: Path) -> "ApiKeys":
        """One key a line; empty lines and those that begin with # are none.

        Raises:
            ServeError: the file cannot be read, or a key is short, odd, or there twice.
        """
        lines = [line.strip() for line in _read(path, "API keys").decode("utf-8", "replace").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        for place, key in enumerate(keys, 1):
            if len(key) < LEAST_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise ServeError(
                    f"{path}: key {place} is no key; a key has at least {LEAST_KEY_CHARACTERS} visible ASCII characters"
                )
        if not keys or len(keys) > MOST_KEYS or len(set(keys)) < len(keys):
            raise ServeError(f"{path} has {len(keys)} keys, {len(set(keys))} different; it must have 1 to {MOST_KEYS}")
        return cls(keys)

    def tenant(self, authorization: str | None) -> str | None:
        """Whose key a header `Bearer KEY` holds; None where it is nobody's. All keys are compared, in equal time."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = None
        for known in self._digests:
            if hmac.compare_digest(known, given):
                found = known
        return None if found is None or scheme.lower() != "bearer" else found.hex()[:32]


def state_key(path: Path | None, state_directory: Path | None) -> bytes:
    """The key that states leaving the server are signed with.

    Without a file of its own it is that in the state directory, where it is made once; without a directory, a new one.

    Raises:
        ServeError: the file cannot be read or made, or is too short.
    """
    if path is None and state_directory is None:
        return secrets.token_bytes(STATE_KEY_BYTES)
    if path is None:
        assert state_directory is not None
        path = state_directory / STATE_KEY_FILE
        _make_key(path)
    key = _read(path, "state key").strip()
    if len(key) < STATE_KEY_BYTES:
        raise ServeError(f"{path} holds a key of {len(key)} bytes; it must have at least {STATE_KEY_BYTES}")
    return key


def _make_key(path: Path) -> None:
    """Writes a new key where there is none, readable by its owner alone, whole or not at all."""
    if path.exists():
        return
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(STATE_KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            os.unlink(fresh)
    except OSError as error:
        raise ServeError(f"{path} cannot be made: {error.strerror}") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ServeError(f"{path}, the file of {what}, cannot be read: {error.strerror}") from error


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
