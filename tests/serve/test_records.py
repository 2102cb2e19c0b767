"""Stored conversations by themselves: what no other needs goes, at a cost that does not grow with the others."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from griffinlm.generation.store import StoreError
from griffinlm.serve.errors import ApiError
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
