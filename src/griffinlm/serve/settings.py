"""What a server is started with."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from griffinlm.serve.errors import ServeError

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)
}


@dataclass(frozen=True)
class Settings:
    """All limits of a server, with those that hold if nothing else is said."""

    host: str = "127.0.0.1"
    port: int = 8000
    memory_budget_bytes: int = 2 << 30
    """Of all states that are ready to go on: in slots, on their way, and kept in memory. Without a state directory an
    eighth of it holds what was said in stored conversations."""
    disk_budget_bytes: int = 16 << 30
    """Of the states in the state directory."""
    api_key_file: Path | None = None
    state_directory: Path | None = None
    state_key_file: Path | None = None
    state_url: str | None = None
    """Of an object store that several machines share their conversations through."""
    capacity: int | None = None
    """Tokens of a conversation with a model that has global attention; the others take none."""
    most_waiting: int = 64
    """Answers that may wait for a slot."""
    most_per_key: int | None = None
    """Answers that one key may have open; None is no limit of its own."""
    default_max_tokens: int = 1024
    """Of an answer where the request does not say."""
    request_timeout_seconds: float = 600.0
    """From its first token to be read to the end of an answer."""
    idle_seconds: float = 30.0
    """For how long a connection may say nothing."""
    drain_seconds: float = 30.0
    """For how long answers may go on once the server was told to end."""
    largest_body_bytes: int = 8 << 20
    largest_upload_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ServeError(f"port is {self.port}; it must be in 0..65535")
        for name in ("most_waiting", "request_timeout_seconds", "idle_seconds", "drain_seconds"):
            if not 0 <= getattr(self, name) < 1e9:
                raise ServeError(f"{name} is {getattr(self, name)}; it must be 0 or above")
        if self.request_timeout_seconds == 0:
            raise ServeError("request_timeout_seconds is 0; it must be above 0, or no answer could begin")
        for name in ("default_max_tokens", "most_per_key"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ServeError(f"{name} is {getattr(self, name)}; it must be 1 or above")
        if self.state_url is not None and self.state_key_file is None:
            raise ServeError(
                "--state-url needs --state-key-file: what machines share is signed with one key",
                hint="openssl rand -hex 32 > state.key",
            )
        if not is_loopback(self.host) and self.api_key_file is None:
            raise ServeError(
                f"host is {self.host}, which others can reach; without API keys the server is for this machine only",
                hint="give --api-key-file, a file with one key a line, or --host 127.0.0.1",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_bytes(name: str, text: str) -> int:
    """A number of bytes as people write it: `8GiB`, `500 MB`, `123456`.

    Raises:
        ServeError: it is none.
    """
    found = re.fullmatch(r"\s*([0-9]{1,15})(\.[0-9]{1,6})?\s*([A-Za-z]*)\s*", text)
    unit = None if found is None else {key.lower(): value for key, value in UNITS.items()}.get(found[3].lower())
    if found is None or unit is None:
        raise ServeError(f"{name} is {text!r}; it must be a size such as 8GiB or 500MB")
    return int(float(found[1] + (found[2] or "")) * unit) if found[2] else int(found[1]) * unit
