"""A server as users have it: a process of its own, asked over the network."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx

PROGRAM = "import sys; from griffinlm.cli.main import main; sys.exit(main())"


class ServerProcess:
    """`griffin serve` on a free port, ready to be asked."""

    def __init__(self, *arguments: str | Path, model: str | Path = "eyas") -> None:
        command = ["serve", "--model", model, "--port", "0", "--threads", "1", *arguments]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, command)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        """All that it logged."""
        self._listening = threading.Event()
        self._port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._listening.wait(300)
        if not self._port:
            raise RuntimeError(f"the server did not start: {self.lines}")
        self.url = f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return self._port

    @property
    def logs(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit status, once the process has ended and all it said was read."""
        status = self._process.wait(120)
        self._reader.join()
        return status

    def kill(self) -> None:
        """As nobody is asked: by SIGKILL."""
        self._process.kill()
        self.wait()

    def stop(self) -> int:
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGTERM)
        return self.wait()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.lines.append(line)
            if not self._port and '"listening"' in line:
                self._port = json.loads(line)["port"]
                self._listening.set()
        self._listening.set()


def server_errors(logs: Sequence[dict]) -> list[dict]:
    """What the server should never say: faults of its own."""
    return [line for line in logs if line["level"] == "error" or (line.get("status") or 0) in (500, 502)]
