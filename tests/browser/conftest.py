"""A server with the bundled model, and a headless browser that notes whatever a page must not do."""

import functools
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 60
GRIFFIN = "import sys; from griffinlm.cli.main import main; sys.exit(main())"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{url}ready", timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, "the server ended before it was ready"
            assert time.monotonic() < deadline, "the server was not ready in time"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts servers that share a key for states; gives the address of the page. They end with the session."""
    processes = []
    state_key = tmp_path_factory.mktemp("key") / "key"
    state_key.write_text("one key for all servers of these tests, as long as it must be\n")

    def start(*options: object) -> str:
        port, directory = free_port(), tmp_path_factory.mktemp("server")
        given = ["serve", "--model", "eyas", "--port", port, "--threads", 1]
        given += ["--state-dir", directory / "states", "--state-key-file", state_key]
        command = [sys.executable, "-c", GRIFFIN, *map(str, [*given, *options])]
        with open(directory / "log", "wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        url = f"http://127.0.0.1:{port}/"
        wait_until_ready(processes[-1], url)
        return url

    yield start
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait(START_SECONDS)


@pytest.fixture(scope="session")
def url(start_server: Callable[..., str]) -> str:
    """The page of a server without keys."""
    return start_server()


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window: the system's, or the one that Playwright brought."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        path = shutil.which("chromium") or running.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("needs a browser: apt-get install chromium, or playwright install chromium")
        # Without a user of its own, as in a container, Chromium has no sandbox.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = running.chromium.launch(executable_path=path, args=arguments)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser):
    """Opens a page in a profile of its own. At the end, every page asked its own server only, and had no fault."""
    contexts, faults = [], []

    def open_page(url: str, **options: object):
        context = browser.new_context(viewport={"width": 1180, "height": 760}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        own = (url, f"blob:{url}")
        page.on("request", lambda request: None if request.url.startswith(own) else faults.append(request.url))
        page.goto(url)
        page.wait_for_selector("#model:enabled")
        return page

    open_page.faults = faults
    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


class Site:
    """A directory given out by a plain server of files, as any static host would; it can end before the test does."""

    def __init__(self, directory: Path) -> None:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(directory))
        )
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Site]]:
    sites: list[Site] = []

    def serve(directory: Path) -> Site:
        sites.append(Site(directory))
        return sites[-1]

    yield serve
    for site in sites:
        site.close()
