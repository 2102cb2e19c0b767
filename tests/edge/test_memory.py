"""What this process may still take: the least of system, control groups and process limits."""

import os
from pathlib import Path

import pytest

from griffinlm.edge import control_group, memory
from griffinlm.edge.memory import NotEnoughMemoryError, available_bytes, require_address_space, require_memory

GROUPS = Path("/sys/fs/cgroup")


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch):
    """Gives the function under test a system of these files, and a limit of the address space."""
    resource = pytest.importorskip("resource")

    def make(files: dict[str | Path, str], address_space: int | None = None, stack: int | None = None) -> None:
        contents = {str(path): content for path, content in files.items()}
        for module in (memory, control_group):
            monkeypatch.setattr(module, "read_lines", lambda path: contents.get(str(path), "").splitlines())
        limits = {resource.RLIMIT_AS: address_space, resource.RLIMIT_STACK: stack}
        told = {kind: resource.RLIM_INFINITY if limit is None else limit for kind, limit in limits.items()}
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (told[kind], told[kind]))

    return make


def group(limit: str, used: int, cached: int = 0, place: str = "") -> dict[str | Path, str]:
    folder = GROUPS / place
    return {
        folder / "memory.max": f"{limit}\n",
        folder / "memory.current": f"{used}\n",
        folder / "memory.stat": f"anon 5\nfile_mapped 7\ninactive_file {cached - cached // 3}\n"
        f"active_file {7 + cached // 3}\n",
    }


def group_1(limit: str, used: int, cached: int = 0, place: str = "") -> dict[str | Path, str]:
    """The same in version 1."""
    folder = GROUPS / "memory" / place
    return {
        folder / "memory.limit_in_bytes": f"{limit}\n",
        folder / "memory.usage_in_bytes": f"{used}\n",
        folder / "memory.stat": f"inactive_file 3\ntotal_mapped_file 7\ntotal_inactive_file {cached - cached // 3}\n"
        f"total_active_file {7 + cached // 3}\n",
    }


NO_LIMIT_1 = "9223372036854771712"
"""What version 1 says where there is none."""
MEMINFO = {"/proc/meminfo": "MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:   10 kB\n"}
STATM = {"/proc/self/statm": "42 5 3 1 0 9 0\n"}
INSIDE = {"/proc/self/cgroup": "1:name=systemd:/old\n0::/user/app\n"}
INSIDE_1 = {"/proc/self/cgroup": "9:name=systemd:/old\n4:cpu,memory:/user/app\n0::/\n"}


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
def test_the_tightest_control_group_counts_and_pages_of_files_that_nobody_has_mapped_are_free(system, files, expected):
    system(MEMINFO | INSIDE | files)
    assert available_bytes() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (group_1("9000", 4000, place="user/app"), 5000),
        (group_1("9000", 4000, cached=1500, place="user/app"), 6500),
        (group_1(NO_LIMIT_1, 4000, place="user/app") | group_1("6000", 4000, place="user"), 2000),
        (group_1("1000", 4000, place="user/app"), 0),
        (group_1(NO_LIMIT_1, 4000, place="user/app"), 10 * 1024),
        (group_1("7000", 4000), 3000),
        (group_1("9000", 4000, place="user/app") | group("6000", 4000), 2000),
    ],
)
def test_control_groups_of_version_1_count_by_the_same_rules(system, files, expected):
    system(MEMINFO | INSIDE_1 | files)
    assert available_bytes() == expected


@pytest.mark.parametrize(("limit", "expected"), [(50_000, 8_000), (10_000, 0), (10**9, 10 * 1024)])
def test_limit_of_the_address_space_counts(system, monkeypatch, limit, expected):
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    system(MEMINFO | STATM, address_space=limit)
    assert available_bytes() == expected


@pytest.mark.parametrize(("num_threads", "stack"), [(1, None), (4, None), (4, 1 << 20)])
def test_further_threads_need_their_stack_and_arena_of_the_address_space_and_nothing_of_memory(
    system, monkeypatch, num_threads, stack
):
    monkeypatch.setattr(os, "sysconf", lambda name: 1000)
    wanted = 5_000 + (num_threads - 1) * (memory.ARENA_BYTES + (stack or memory.DEFAULT_STACK_BYTES))
    system(MEMINFO | STATM, address_space=42_000 + wanted, stack=stack)
    require_address_space(5_000, num_threads, "a model")
    system(MEMINFO | STATM, address_space=41_999 + wanted, stack=stack)
    with pytest.raises(NotEnoughMemoryError, match=rf"a model needs .* of address space \(threads: {num_threads}\)"):
        require_address_space(5_000, num_threads, "a model")
    system(MEMINFO | STATM, stack=stack)
    require_address_space(5_000, num_threads, "a model")


def test_here_and_now_there_is_some_memory():
    found = available_bytes()
    assert found is None or 0 < found < 1 << 60


def test_what_does_not_fit_is_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2_000_000_000)
    require_memory(2_000_000_000, "a model")
    with pytest.raises(NotEnoughMemoryError) as caught:
        require_memory(3_100_000_000, "a model")
    assert str(caught.value) == "a model needs 3,100 MB of memory; 2,000 MB are available"
