"""What this process may still take: the least of system, control groups and process limit."""

import os
from pathlib import Path

import pytest

from griffinlm.edge import memory
from griffinlm.edge.memory import NotEnoughMemoryError, available_bytes, require_memory

GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch):
    """Gives the function under test a system of these files, and a limit of the address space."""
    resource = pytest.importorskip("resource")

    def make(files: dict[str | Path, str], address_space: int | None = None) -> None:
        contents = {str(path): content for path, content in files.items()}
        monkeypatch.setattr(memory, "_lines", lambda path: contents.get(str(path), "").splitlines())
        limit = resource.RLIM_INFINITY if address_space is None else address_space
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))

    return make


def group(limit: str, used: int, cached: int = 0, place: str = "") -> dict[str | Path, str]:
    folder = GROUPS / place
    return {
        folder / "memory.max": f"{limit}\n",
        folder / "memory.current": f"{used}\n",
        folder / "memory.stat": f"anon 5\ninactive_file {cached}\nactive_file 7\n",
    }


MEMINFO = {"/proc/meminfo": "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:   10 kB\n"}
INSIDE = {"/proc/self/cgroup": "1:name=systemd:/old\n0::/user/app\n"}


def test_nobody_tells(system):
    system({})
    assert available_bytes() is None
    require_memory(1 << 60, "a model")


def test_system_tells_what_is_available(system):
    system(MEMINFO)
    assert available_bytes() == 10 * 1024


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (group("9000", 4000, place="user/app"), 5000),
        (group("9000", 4000, cached=1500, place="user/app"), 6500),
        (group("max", 4000, place="user/app") | group("6000", 4000, place="user"), 2000),
        (group("9000", 4000, place="user/app") | group("20000", 19000), 1000),
        (group("1000", 4000, place="user/app"), 0),
        (group("max", 4000, place="user/app"), 10 * 1024),
        (group("9000", 4000, place="user/other"), 10 * 1024),
    ],
)
def test_the_tightest_control_group_counts_and_file_pages_are_free(system, files, expected):
    system(MEMINFO | INSIDE | files)
    assert available_bytes() == expected


@pytest.mark.parametrize(("limit", "expected"), [(50_000, 8_000), (10_000, 0), (10**9, 10 * 1024)])
def test_limit_of_the_address_space_counts(system, monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    system(MEMINFO | {"/proc/self/statm": "42 5 3 1 0 9 0\n"}, address_space=limit)
    assert available_bytes() == expected


def test_here_and_now_there_is_some_memory():
    found = available_bytes()
    assert found is None or 0 < found < 1 << 60


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000_000)
    require_memory(2_000_000_000, "a model")
    with pytest.raises(NotEnoughMemoryError) as caught:
        require_memory(3_100_000_000, "a model", "take a smaller one")
    assert str(caught.value) == "a model needs 3,100 MB of memory; 2,000 MB are available"
    assert caught.value.hint == "take a smaller one"
