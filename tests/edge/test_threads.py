import os

import pytest

from griffinlm.edge import control_group, threads


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Four processors, two to a core, and no quota."""
    monkeypatch.setattr(threads, "CPUS", tmp_path / "cpu")
    monkeypatch.setattr(control_group, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(control_group, "MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("3:cpu,cpuacct:/app\n0::/app\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        folder = tmp_path / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    (tmp_path / "cgroup" / "app").mkdir(parents=True)
    (tmp_path / "cgroup" / "cpu" / "app").mkdir(parents=True)
    return tmp_path


def test_one_thread_for_every_core(system):
    assert threads.num_threads() == 2


def test_what_is_said_holds(system):
    assert threads.num_threads(7) == 7


def test_only_allowed_processors_count(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert threads.num_threads() == 1


@pytest.mark.parametrize(("quota", "expected"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 2), ("", 2)])
def test_quota_of_the_control_group_bounds_it(system, quota, expected):
    (system / "cgroup" / "cpu.max").write_text(quota)
    assert threads.num_threads() == expected


@pytest.mark.parametrize(("quota", "expected"), [(100_000, 1), (50_000, 1), (300_000, 2), (-1, 2)])
def test_quota_of_a_control_group_of_version_1_bounds_it(system, quota, expected):
    folder = system / "cgroup" / "cpu" / "app"
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.num_threads() == expected


def test_processors_without_topology_count_as_cores(system, monkeypatch):
    monkeypatch.setattr(threads, "CPUS", system / "nothing")
    assert threads.num_threads() == 4
