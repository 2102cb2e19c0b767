"""Stored conversations by themselves: what no other needs goes, at a cost that does not grow with the others."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from griffinlm.generation.store import StoreError
from griffinlm.serve.errors import ApiError, ServeError
from griffinlm.serve.records import FILE, Heading, Record, Records
from griffinlm.state import Fingerprint

FINGERPRINT = Fingerprint("weights", "float32", "float32", "tokenizer")


@pytest.fixture
def records(tmp_path):
    opened = Records(tmp_path, FINGERPRINT)
    yield opened
    opened.close()


def record(number, parent=None, **fields):
    known = {"id": f"resp_{number}", "parent": None if parent is None else f"resp_{parent}"}
    known |= {"messages": [{"role": "user", "content": "x"}], **fields}
    return Record(**known, kind="response", model="m", adapter=None, instructions=None, num_tokens=1, created=number)


def deleted(records, tenant, record_id):
    """The states that go with a record."""
    found = records.unused(tenant, records.get(tenant, record_id).state_ids, besides=record_id)
    records.delete(tenant, record_id)
    return found


def test_a_state_goes_with_the_last_record_that_stands_on_it(records):
    first = record(1, state_id="a", kept_ids=["a", "b"])
    fork, other = replace(first, id="resp_2", kept_ids=[]), record(3, state_id="c", kept_ids=["c"])
    records.put("t", [first, fork, other])
    assert deleted(records, "t", "resp_1") == ["b"]
    assert deleted(records, "t", "resp_3") == ["c"]
    with pytest.raises(ApiError):
        records.get("t", "resp_1")
    records.put("t", [record(4, state_id="a", kept_ids=["a"])])
    assert deleted(records, "t", "resp_4") == []
    assert deleted(records, "t", "resp_2") == ["a"]


def test_a_moved_record_stands_on_its_new_states(records):
    records.put("t", [record(1, state_id="a", unread=[1], kept_ids=["a"])])
    records.move("t", "resp_1", "c", ["b", "c"])
    assert records.get("t", "resp_1").state_id == "c"
    assert records.unused("t", ["a", "b", "c"]) == []
    records.put("t", [record(2, state_id="c", kept_ids=["c"])])
    assert deleted(records, "t", "resp_2") == []
    assert deleted(records, "t", "resp_1") == ["a", "b", "c"]


def test_a_record_that_was_deleted_is_not_moved_and_its_states_are_nobodys(records):
    records.put("t", [record(1, state_id="a", kept_ids=["a"]), record(2, parent=1, state_id="b", kept_ids=["b"])])
    assert deleted(records, "t", "resp_1") == ["a"]
    with pytest.raises(ApiError):
        records.move("t", "resp_1", "c", ["c"])
    assert records.unused("t", ["b", "c"]) == ["c"]


def test_what_is_gone_on_from_stays_for_its_successor_where_it_is_deleted_before_that_is_put(records):
    records.put("t", [record(1, state_id="a", kept_ids=["a"])])
    before = records.get("t", "resp_1")
    assert deleted(records, "t", "resp_1") == ["a"]
    successor = record(2, parent=1)
    records.put("t", [successor], before=before)
    assert records.path("t", successor) == [before, successor]
    assert [one.id for one in records.newest("t", 10)] == ["resp_2"]
    with pytest.raises(ApiError):
        records.get("t", "resp_1")
    records.delete("t", "resp_2")
    assert records._database.execute("SELECT count(*) FROM records").fetchone() == (0,)


def test_nothing_follows_a_conversation_that_was_deleted_from_its_beginning(records):
    records.put("t", [record(1), record(2, parent=1)])
    before = records.get("t", "resp_2")
    for number in (1, 2):
        records.delete("t", f"resp_{number}")
    with pytest.raises(ApiError, match="resp_2 was deleted before its end"):
        records.put("t", [record(3, parent=2)], before=before)
    assert records._database.execute("SELECT count(*) FROM records").fetchone() == (0,)


def test_a_record_that_another_process_deletes_is_not_brought_back_by_a_move(records, tmp_path):
    records.put("t", [record(1, state_id="a", kept_ids=["a"])])
    told = []

    def delete(other, statement):
        if statement.startswith("SELECT") and not told:
            try:
                told.append(other.delete("t", "resp_1"))
            except StoreError as refused:
                told.append(refused)

    with closing(Records(tmp_path, FINGERPRINT)) as other:
        other._database.execute("PRAGMA busy_timeout = 0")
        records._database.set_trace_callback(lambda statement: delete(other, statement))
        records.move("t", "resp_1", "b", ["b"])
        records._database.set_trace_callback(None)
        (refused,) = told
        is_there = bool(records.newest("t", 1))
        assert is_there == (refused is not None), "it was deleted, and is there again"


def test_the_text_of_a_deleted_record_is_in_no_file(records, tmp_path):
    records.put("t", [record(1, body={"text": "secret"}), record(2)])
    records.move("t", "resp_1", "a", ["a"])
    assert any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())
    records.delete("t", "resp_1")
    assert [path for path in tmp_path.iterdir() if b"secret" in path.read_bytes()] == []


def test_a_database_of_another_layout_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / FILE)) as database:
        database.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, content TEXT NOT NULL)")
    with pytest.raises(ServeError, match="has format version 0; this program reads 1"):
        Records(tmp_path, FINGERPRINT)


def test_lists_are_read_without_what_was_said(records):
    records.put("t", [record(1)])
    records._database.execute("UPDATE records SET content = 'nothing that can be read'")
    assert [one.id for one in records.newest("t", 1)] == ["resp_1"]


def test_lists_hold_what_they_show_and_no_more(records):
    put = [record(number, messages=[{"role": "user", "content": "x" * 1000}], parent=1) for number in range(2, 5)]
    records.put("t", [record(1), *put])
    found = records.newest("t", 3)
    assert [type(one) for one in found] == [Heading] * 3
    expected = [{name: vars(one)[name] for name in vars(found[0])} for one in put[::-1]]
    assert [vars(one) for one in found] == expected


def test_a_tenants_records_keep_no_state_of_another(records):
    for tenant in ("t", "u"):
        records.put(tenant, [record(1, state_id="a", kept_ids=["a"])])
    assert deleted(records, "t", "resp_1") == ["a"]


def test_deleting_takes_as_many_steps_whatever_else_is_stored(records):
    def num_steps(first):
        records.put("t", [record(first, state_id="s", kept_ids=["s", f"k{first}"])])
        count = [0]
        records._database.set_progress_handler(lambda: count.__setitem__(0, count[0] + 1), 1)
        deleted(records, "t", f"resp_{first}")
        records._database.set_progress_handler(None, 0)
        return count[0]

    records.put("t", [record(0, state_id="s0", kept_ids=["s0"])])
    alone = num_steps(1)
    records.put("t", [record(number, state_id=f"s{number}", kept_ids=[f"s{number}"]) for number in range(2, 3000)])
    assert num_steps(5000) < 2 * alone


def test_a_database_that_cannot_be_written_keeps_what_it_had_and_goes_on(records):
    records.put("t", [record(1)])
    (num_pages,) = records._database.execute("PRAGMA page_count").fetchone()
    records._database.execute(f"PRAGMA max_page_count = {num_pages}")
    big = [record(number, body={"text": "x" * 10_000}) for number in range(2, 50)]
    with pytest.raises(StoreError, match="full"):
        records.put("t", big)
    assert [one.id for one in records.newest("t", 100)] == ["resp_1"]
    records._database.execute(f"PRAGMA max_page_count = {1 << 30}")
    records.put("t", big)
    assert len(records.newest("t", 100)) == 49


def test_the_oldest_records_go_where_the_database_would_pass_its_size(tmp_path):
    most_bytes = 1 << 18
    with closing(Records(tmp_path, FINGERPRINT, most_bytes)) as records:
        for number in range(100):
            records.put("tu"[number % 2], [record(number, body={"text": "x" * 10_000})])
        kept = sorted(int(one.id[5:]) for tenant in "tu" for one in records.newest(tenant, 100))
        assert kept == list(range(100 - len(kept), 100))
        assert len(kept) > 10
        with pytest.raises(StoreError, match="does not fit into the 262144 bytes"):
            records.put("t", [record(100, body={"text": "x" * most_bytes})])
        assert sorted(int(one.id[5:]) for tenant in "tu" for one in records.newest(tenant, 100)) == kept
    assert (tmp_path / FILE).stat().st_size <= most_bytes + 20_000


@pytest.mark.parametrize("is_replaced", [False, True])
def test_nothing_is_taken_into_a_database_that_was_removed(records, tmp_path, is_replaced):
    records.put("t", [record(1)])
    (tmp_path / FILE).rename(tmp_path / "elsewhere")
    if is_replaced:
        (tmp_path / FILE).touch()
    with pytest.raises(StoreError, match="was removed or replaced while in use"):
        records.put("t", [record(2)])
    (tmp_path / "elsewhere").replace(tmp_path / FILE)
    records.put("t", [record(2)])


def test_a_damaged_database_is_told_as_such(tmp_path):
    records = Records(tmp_path, FINGERPRINT)
    records.put("t", [record(1)])
    records.close()
    path = tmp_path / FILE
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    records = Records(tmp_path, FINGERPRINT)
    with pytest.raises(StoreError, match="cannot be used"):
        records.get("t", "resp_1")
    records.close()
