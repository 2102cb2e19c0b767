"""A server's process: started, ready, watched, ended."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from peers.programs import RunError

from .servers import Server

START_SECONDS, END_SECONDS = 600, 60
SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def running(server: Server, python: str, model: Path, log: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a server that is ready, and that ends behind the block.

    Raises:
        RunError: it cannot be started, ended by itself, or was not ready in time.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with open(log, "wb") as file:
        process = subprocess.Popen(server.command(python, model, port), stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(process, url, log)
        yield url, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
            told = next((line for line in reversed(lines) if line.strip()), "")
            raise RunError(told[:300] or f"it ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise RunError(f"it was not ready after {START_SECONDS} seconds")


class Memory:
    """Looks at a process's resident set from time to time while a block runs."""

    def __init__(self, pid: int) -> None:
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.series: list[dict[str, float]] = []
        """`seconds` since the block began and `bytes`; empty where the system does not tell."""

    def __enter__(self) -> "Memory":
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        self._look()
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self) -> None:
        try:
            num_pages = int(Path(f"/proc/{self._pid}/statm").read_text(encoding="ascii").split()[1])
        except OSError:
            return
        seconds = round(time.perf_counter() - self._start, 2)
        self.series.append({"seconds": seconds, "bytes": num_pages * os.sysconf("SC_PAGE_SIZE")})
