import pytest

from serve.server_process import ServerProcess, server_errors

pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def server():
    """One for all tests that leave it as it was. None of them makes it fail."""
    process = ServerProcess("--request-timeout", "120")
    yield process
    assert process.stop() == 0
    assert server_errors(process.logs) == []


@pytest.fixture(scope="session")
def client(server):
    with server.client() as client:
        yield client
