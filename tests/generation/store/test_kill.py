"""Killed in the middle of anything, two processes at a time: what was acknowledged is there and exact."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from griffinlm.generation.store import StateNotFoundError, StateStore
from store.small_states import GRIFFIN, is_same
from store.worker import TENANT, state_of

TESTS = Path(__file__).parents[1]
CALLS_TO_OPEN_AND_SOME_MORE = 15_000


def start(directory: Path, seed: int, num_calls: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "store.worker", str(directory), str(seed), str(num_calls)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=TESTS)


def run_until_killed(directory: Path, chance: random.Random) -> list[str]:
    """The lines of two processes on one directory, one killing itself, the other killed from outside."""
    suicidal = start(directory, chance.randrange(1 << 20), chance.randint(1, CALLS_TO_OPEN_AND_SOME_MORE))
    other = start(directory, chance.randrange(1 << 20), 0)
    assert other.stdout is not None
    heard = [other.stdout.readline() for _ in range(chance.randint(1, 60))]
    own = suicidal.communicate()[0]
    other.kill()
    lines = "".join(heard) + other.communicate()[0] + own
    assert suicidal.returncode == other.returncode == -9, lines
    return lines.splitlines()


def check(directory: Path, told: list[list[str]]) -> tuple[int, int]:
    """Every state told of is exact, or gone as it may be; gives how many there are, and how many changes were cut."""
    put = {words[1]: (int(words[2]), int(words[3])) for words in told if words[0] == "put"}
    deleting = {words[1] for words in told if words[0] == "deleting"}
    deleted = {words[1] for words in told if words[0] == "deleted"}
    with StateStore(GRIFFIN, directory, memory_bytes=0, disk_bytes=1 << 30) as store:
        there = store.ids(TENANT)
        for state_id in there:
            found = store.get(TENANT, state_id)
            if state_id in put:
                tokens, arrays = state_of(*put[state_id])
                assert found.token_ids.tolist() == tokens
                assert is_same(found.arrays, arrays)
        assert put.keys() - deleting <= set(there)
        assert not deleted & set(there)
        for state_id in deleted:
            with pytest.raises(StateNotFoundError):
                store.get(TENANT, state_id)
        counts = store.counts()
        assert counts.num_damaged == 0
        files = list((directory / "records").iterdir())
        assert counts.record_bytes == sum(path.stat().st_size for path in files)
    return len(there), len(set(there) - put.keys()) + len(deleting - deleted)


@pytest.mark.parametrize("num_kills", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_processes_lose_nothing_acknowledged_and_leave_nothing_half_written(tmp_path, num_kills):
    chance, told, num_cut = random.Random(0), [], 0
    for _ in range(num_kills // 2):
        told += [line.split() for line in run_until_killed(tmp_path / "s", chance)]
        num_states, num_cut = check(tmp_path / "s", told)
    num_changes = sum(words[0] != "deleting" for words in told)
    print(f"{num_kills} kills: {num_changes} changes acknowledged, {num_cut} cut short, {num_states} states exact")
    assert num_changes > num_kills
    assert os.listdir(tmp_path / "s" / "damaged") == []
