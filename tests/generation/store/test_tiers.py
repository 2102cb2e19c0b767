"""Damaged records and indexes are found, told and never returned; memory stays in its budget; chains stay short."""

import dataclasses
import os
import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.errors import GriffinError
from griffinlm.generation.store import DamagedStateError, StateNotFoundError, StateStore, StoreError, index, tiers
from griffinlm.generation.store.content import StoredState
from griffinlm.generation.store.delta import decode, encode, materialise
from griffinlm.generation.store.disk import DiskRecords
from griffinlm.generation.store.memory import MemoryTier
from griffinlm.generation.store.prefix import BLOCK_TOKENS, PrefixHashes
from store.small_states import GRIFFIN, after, empty, is_same


def open_store(directory, memory_bytes: int = 0) -> StateStore:
    return StateStore(GRIFFIN, directory, memory_bytes=memory_bytes, disk_bytes=1 << 30)


def chain(store: StateStore, num_turns: int) -> list[tuple[str, list[int], dict[str, np.ndarray]]]:
    """Id, tokens and arrays of the turns of one conversation, each the parent of the next."""
    turns, tokens, arrays = [], [], empty(GRIFFIN)
    for turn in range(num_turns):
        tokens, arrays = [*tokens, turn, turn], after(arrays, 2, turn)
        turns.append((store.put("a", tokens, arrays, turns[-1][0] if turns else None), tokens, arrays))
    return turns


def record_paths(store: StateStore) -> list:
    """Files of the records, oldest first."""
    with sqlite3.connect(store.directory / "index.sqlite") as database:
        names = [row[0] for row in database.execute("SELECT record FROM states ORDER BY node")]
    return [store.directory / "records" / name for name in names]


def damage(path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[:-1])
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_record_is_told_counted_set_aside_and_never_returned(tmp_path, kind, which):
    with open_store(tmp_path / "s") as store:
        turns = chain(store, 3)
        path = record_paths(store)[which]
        damage(path, kind)
        for state_id, _, arrays in turns[:which]:
            assert is_same(store.get("a", state_id).arrays, arrays)
        with pytest.raises(DamagedStateError, match="does not match its checksum; it was set aside") as caught:
            store.get("a", turns[2][0])
        assert "\n" not in str(caught.value)
        for state_id, _, _ in turns[which:]:
            with pytest.raises(StateNotFoundError):
                store.get("a", state_id)
        assert store.counts().num_damaged == 1
        assert os.listdir(tmp_path / "s" / "damaged") == ([] if kind == "missing" else [path.name])
        found = store.find_longest_prefix("a", turns[2][1])
        assert (found and found.id) == (turns[which - 1][0] if which else None)
        assert len(os.listdir(tmp_path / "s" / "records")) == which


def test_a_repeated_put_replaces_a_damaged_record(tmp_path):
    with open_store(tmp_path / "s") as store:
        (parent, _, _), (child, tokens, arrays) = chain(store, 2)
        damage(record_paths(store)[0], "flipped")
        assert store.put("a", tokens, arrays) == child
        assert is_same(store.get("a", child).arrays, arrays)
        with pytest.raises(StateNotFoundError):
            store.get("a", parent)
        assert store.counts().num_damaged == 1


def test_chains_are_bounded_and_long_ones_exact(tmp_path):
    with open_store(tmp_path / "s") as store:
        turns = chain(store, 2 * tiers.LONGEST_CHAIN + 3)
        with sqlite3.connect(tmp_path / "s" / "index.sqlite") as database:
            links = [row[0] for row in database.execute("SELECT num_links FROM states ORDER BY node")]
        assert links == [turn % tiers.LONGEST_CHAIN for turn in range(len(turns))]
        for state_id, tokens, arrays in turns:
            found = store.get("a", state_id)
            assert found.token_ids.tolist() == tokens
            assert is_same(found.arrays, arrays)


def test_what_a_killed_process_left_is_swept_when_the_store_is_opened(tmp_path):
    with open_store(tmp_path / "s") as store:
        ((state_id, _, arrays),) = chain(store, 1)
        (tmp_path / "s" / "records" / ("0" * 32)).write_bytes(b"orphan")
        (tmp_path / "s" / "records" / ("1" * 32 + ".partial")).write_bytes(b"half")
        with open_store(tmp_path / "s") as other:
            assert len(os.listdir(tmp_path / "s" / "records")) == 1
            assert is_same(other.get("a", state_id).arrays, arrays)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(range(256)) * 40])
def test_a_damaged_index_is_one_clear_error(tmp_path, content):
    open_store(tmp_path / "s").close()
    (tmp_path / "s" / "index.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"index of state store .* is damaged") as caught:
        open_store(tmp_path / "s")
    assert "\n" not in str(caught.value)


def test_another_programs_database_and_a_newer_format_are_refused(tmp_path):
    open_store(tmp_path / "s").close()
    for pragma, message in (("user_version = 3", "format version 3"), ("application_id = 1", "no index of a state")):
        with sqlite3.connect(tmp_path / "s" / "index.sqlite") as database:
            database.execute(f"PRAGMA {pragma}")
        with pytest.raises(StoreError, match=message):
            open_store(tmp_path / "s")


def test_a_directory_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"state store .*file"):
        open_store(tmp_path / "file")


@given(st.integers(0, 1 << 30))
def test_a_changed_index_gives_exact_states_or_an_error(tmp_path_factory, seed):
    directory = tmp_path_factory.mktemp("s")
    with open_store(directory) as store:
        turns = chain(store, 4)
        store.set_name("a", "n", turns[1][0])
    path, chance = directory / "index.sqlite", random.Random(seed)
    content = bytearray(path.read_bytes())
    used = [place for place, byte in enumerate(content) if byte and place >= 100]
    for place in chance.sample(used, 3):
        content[place] = chance.randrange(256)
    path.write_bytes(content)
    try:
        with open_store(directory) as store:
            for state_id, tokens, arrays in turns:
                try:
                    found = store.get("a", state_id)
                except GriffinError:
                    continue
                assert found.token_ids.tolist() == tokens
                assert is_same(found.arrays, arrays)
    except StoreError as error:
        assert "\n" not in str(error)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30))
def test_memory_never_passes_its_budget_and_counts_exactly(puts):
    memory = MemoryTier(100)
    held: dict[int, int] = {}
    for node, size in puts:
        state = StoredState(np.zeros(size, np.int32), {"x": np.zeros(16, np.uint8)})
        memory.put(node, state)
        held[node] = state.nbytes
        found = {n: memory.get(n) for n in held}
        assert memory.num_bytes == sum(state.nbytes for state in found.values() if state is not None) <= 100
        assert found[node] is not None


def test_memory_drops_what_was_used_longest_ago():
    memory = MemoryTier(8)
    for node in (1, 2):
        memory.put(node, StoredState(np.zeros(1, np.int32), {}))
    memory.get(1)
    memory.put(3, StoredState(np.zeros(1, np.int32), {}))
    assert [node for node in (1, 2, 3) if memory.get(node)] == [1, 3]
    memory.put(4, StoredState(np.zeros(3, np.int32), {}))
    assert memory.get(4) is None
    assert memory.num_bytes == 8


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_record_holds_only_the_slots_written_since(num_before, num_new):
    before = after(empty(GRIFFIN), num_before, 0) if num_before else empty(GRIFFIN)
    now = after(before, num_new, 1)
    tokens = np.arange(num_before + num_new, dtype=np.int32)
    base, state = StoredState(tokens[:num_before], before), StoredState(tokens, now)
    record = decode(encode(GRIFFIN, state, base))
    window = 7
    assert record["slots.7"].tolist() == sorted({(num_before + i) % window for i in range(num_new)})
    assert record["layers.2.keys"].shape == (1, min(num_new, window), 16)
    found = materialise(GRIFFIN, [record], base)
    assert is_same(found.arrays, now)
    assert found.token_ids.tolist() == tokens.tolist()


@given(st.integers(1, 4 * BLOCK_TOKENS), st.data())
def test_hashes_differ_from_the_first_other_token_on_and_between_scopes(num_tokens, data):
    place = data.draw(st.integers(0, num_tokens - 1))
    tokens = np.arange(num_tokens, dtype=np.int32) % 5
    other = tokens.copy()
    other[place] += 1
    one, two, elsewhere = (
        PrefixHashes(s, t) for s, t in ((b"s" * 32, tokens), (b"s" * 32, other), (b"t" * 32, tokens))
    )
    for length in range(num_tokens + 1):
        assert (one.of_first(length) == two.of_first(length)) == (length <= place)
        assert one.of_first(length) != elsewhere.of_first(length)
    assert not set(one.blocks) & set(elsewhere.blocks)


@pytest.mark.parametrize("value", [-0.0, np.nan, np.float32("inf")])
def test_slots_that_differ_in_bits_alone_are_kept(value):
    base = StoredState(np.zeros(0, np.int32), empty(GRIFFIN))
    arrays = empty(GRIFFIN)
    arrays["layers.2.keys"][0, 3, 5] = value
    record = decode(encode(GRIFFIN, StoredState(base.token_ids, arrays), base))
    assert record["slots.7"].tolist() == [3]
    assert is_same(materialise(GRIFFIN, [record], base).arrays, arrays)


def test_sound_records_joined_wrongly_by_the_index_are_never_returned(tmp_path):
    with open_store(tmp_path / "s") as store:
        first, second = chain(store, 1)[0], store.put("a", [7, 7], after(empty(GRIFFIN), 2, 9))
        with sqlite3.connect(tmp_path / "s" / "index.sqlite") as database:
            database.execute("UPDATE states SET id = 'x' WHERE id = ?", [first[0]])
            database.execute("UPDATE states SET id = ? WHERE id = ?", [first[0], second])
        with pytest.raises(DamagedStateError):
            store.get("a", first[0])


def test_nobody_opens_or_sweeps_between_a_record_and_its_entry(tmp_path, monkeypatch):
    write = DiskRecords.write

    def write_while_another_opens(records: DiskRecords, content: bytes) -> str:
        name = write(records, content)
        with pytest.raises(StoreError, match="is busy: others held it"):
            open_store(tmp_path / "s")
        return name

    with open_store(tmp_path / "s") as store:
        monkeypatch.setattr(index, "BUSY_TIMEOUT_SECONDS", 0.0)
        monkeypatch.setattr(DiskRecords, "write", write_while_another_opens)
        ((state_id, _, arrays),) = chain(store, 1)
        assert is_same(store.get("a", state_id).arrays, arrays)


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def write(records: DiskRecords, content: bytes) -> str:
        raise OSError(28, "No space left on device")

    with open_store(tmp_path / "s") as store:
        turns = chain(store, 1)
        monkeypatch.setattr(DiskRecords, "write", write)
        with pytest.raises(StoreError, match="No space left on device"):
            store.put("a", [7, 7], after(empty(GRIFFIN), 2, 9))
        assert store.ids("a") == [turns[0][0]]
        assert len(os.listdir(tmp_path / "s" / "records")) == 1


def test_a_deletion_is_done_also_where_the_disk_has_no_room_to_empty_the_log(tmp_path, monkeypatch):
    run, is_full = index.Index._run, True

    def run_on_a_full_disk(self, statement, *values):
        if is_full and "wal_checkpoint" in statement:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise self._refusal(error)
        return run(self, statement, *values)

    with open_store(tmp_path / "s") as store:
        ids = [turn[0] for turn in chain(store, 3)]
        monkeypatch.setattr(index.Index, "_run", run_on_a_full_disk)
        store.delete("a", ids[2])
        assert store.ids("a") == ids[:2]
        assert len(os.listdir(tmp_path / "s" / "records")) == 2
        assert (tmp_path / "s" / "index.sqlite-wal").stat().st_size > 0
        is_full = False
        assert store.delete_all("a") == 2
        assert (tmp_path / "s" / "index.sqlite-wal").stat().st_size == 0


@pytest.mark.parametrize(("num_new", "is_on_nothing"), [(1, False), (5, False), (6, True), (7, True), (20, True)])
def test_a_record_of_a_mostly_new_window_stands_on_nothing(tmp_path, num_new, is_on_nothing):
    with open_store(tmp_path / "s") as store:
        before = after(empty(GRIFFIN), 7, 0)
        first = store.put("a", [5] * 7, before)
        now = after(before, num_new, 1)
        second = store.put("a", [5] * (7 + num_new), now, first)
        with sqlite3.connect(tmp_path / "s" / "index.sqlite") as database:
            links = [row[0] for row in database.execute("SELECT num_links FROM states ORDER BY node")]
        assert links == [0, 0 if is_on_nothing else 1]
        assert is_same(store.get("a", second).arrays, now)


def test_threads_share_a_store():
    with StateStore(GRIFFIN, None, memory_bytes=1 << 24) as store, ThreadPoolExecutor(8) as pool:
        for turns in list(pool.map(lambda _: chain(store, 10), range(8))):
            for state_id, _, arrays in turns:
                assert is_same(store.get("a", state_id).arrays, arrays)
        assert store.counts().num_states == 10


def test_views_of_one_store_share_room_and_find_only_their_own(tmp_path):
    other = dataclasses.replace(GRIFFIN, weights="b" * 64)
    with open_store(tmp_path / "s") as store:
        view = store.view(other)
        (state_id, tokens, arrays), *_ = chain(store, 1)
        own = view.put("a", tokens, arrays)
        assert own != state_id
        assert (store.ids("a"), view.ids("a")) == ([state_id], [own])
        assert view.find_longest_prefix("a", tokens) == (own, len(tokens))
        with pytest.raises(StateNotFoundError):
            view.get("a", state_id)
        assert view.counts() == store.counts()
        with pytest.raises(StoreError, match="other arrays"):
            store.view(dataclasses.replace(GRIFFIN, window_dtype="float16"))


def test_the_longest_prefix_is_given_with_its_state_and_damage_falls_back_to_a_shorter_one(tmp_path):
    with open_store(tmp_path / "s") as store:
        turns = chain(store, 3)
        document = [*turns[-1][1], 9]
        found_id, found = store.get_longest_prefix("a", document)
        assert found_id == turns[2][0]
        assert is_same(found.arrays, turns[2][2])
        damage(record_paths(store)[2], "flipped")
        found_id, found = store.get_longest_prefix("a", document)
        assert found_id == turns[1][0]
        assert is_same(found.arrays, turns[1][2])
        assert store.get_longest_prefix("b", document) == (None, None)


def fill_for_deletion(store: StateStore) -> list[str]:
    """States of two tenants, names, a base that is shared and deleted, a chain with a deleted node; the others' ids."""
    turns = chain(store, 3)
    store.set_name("a", "x", turns[0][0])
    store.delete("a", turns[1][0])
    store.view(dataclasses.replace(GRIFFIN, weights="b" * 64)).put("a", *turns[0][1:])
    shared = store.share("a", turns[0][0], "preface")
    store.put("a", *turns[1][1:], shared)
    store.unshare("preface")
    return [store.put("b", *turns[0][1:]), store.put("b", *turns[2][1:])]


def test_deletion_of_a_tenant_leaves_nothing_of_it_for_any_model(tmp_path):
    with open_store(tmp_path / "s") as store:
        others = fill_for_deletion(store)
        damage(record_paths(store)[-1], "flipped")
        with pytest.raises(DamagedStateError):
            store.get("b", others.pop())
    with open_store(tmp_path / "s", memory_bytes=1 << 20) as store:
        assert all(store.get("a", state_id).nbytes for state_id in store.ids("a"))
        assert store.delete_all("a") == 4
        assert store.ids("a") == store.view(dataclasses.replace(GRIFFIN, weights="b" * 64)).ids("a") == []
        assert store.names("a") == {}
        assert store.ids("b") == others
        assert len(os.listdir(tmp_path / "s" / "records")) == 1
        assert os.listdir(tmp_path / "s" / "damaged") == []
        counts = store.counts()
        assert (counts.num_states, counts.record_bytes) == (1, record_paths(store)[0].stat().st_size)
        assert counts.memory_bytes == 0
        assert store.delete_all("a") == 0


@pytest.mark.parametrize("where", ["remove_owner", "_remove_unneeded", "remove", "empty_log"])
def test_deletion_of_a_tenant_cut_short_is_all_or_nothing(tmp_path, monkeypatch, where):
    class CutShortError(Exception):
        pass

    def cut(*_):
        raise CutShortError

    with open_store(tmp_path / "s") as store:
        others = fill_for_deletion(store)
        before, num_files = store.ids("a"), len(record_paths(store))
        owner = DiskRecords if where == "remove" else index.Index
        with monkeypatch.context() as patched:
            patched.setattr(owner, where, cut)
            with pytest.raises(CutShortError):
                store.delete_all("a")
    is_done = where in ("remove", "empty_log")
    with open_store(tmp_path / "s") as again:
        assert again.ids("a") == ([] if is_done else before)
        assert again.ids("b") == others
        assert len(os.listdir(tmp_path / "s" / "records")) == (2 if is_done else num_files)
        again.delete_all("a")
        assert again.ids("a") == []
        assert len(os.listdir(tmp_path / "s" / "records")) == 2
