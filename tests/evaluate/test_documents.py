"""Documents out of files, and what is told of files that hold none."""

import gzip
import lzma

import pytest

from griffinlm.evaluate.documents import DocumentError, RowRules, read_documents


def read(path, data: bytes) -> list[str]:
    path.write_bytes(data)
    return list(read_documents(path))


def test_rows_are_documents_and_blank_lines_are_none(tmp_path):
    data = '{"text": "one\\n"}\n\n{"text": "zwölf", "id": 2}\r\n  \n{"text": ""}'.encode()
    assert read(tmp_path / "a.jsonl", data) == ["one\n", "zwölf", ""]
    assert read(tmp_path / "a.jsonl.xz", lzma.compress(data)) == ["one\n", "zwölf", ""]
    assert read(tmp_path / "a.jsonl.gz", gzip.compress(data)) == ["one\n", "zwölf", ""]


def test_a_text_file_is_one_document_with_its_line_ends(tmp_path):
    assert read(tmp_path / "a.txt", b"one\r\ntwo\n") == ["one\r\ntwo\n"]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b" \n\n", "is empty"),
        ("a.txt", b"", "is empty"),
        ("a.json", b"{}", "unknown ending"),
        ("a.jsonl.bz2", b"", "unknown ending"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2: the row is no JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n["a"]', 'line 3: the row has no field "text"'),
        ("a.jsonl", b'{"texts": "a"}', 'line 1: the row has no field "text"'),
        ("a.jsonl", b'{"text": 5}', 'line 1: "text" is a int'),
        ("a.jsonl", b'{"text": null}', 'line 1: "text" is a NoneType'),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: "),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2: it is not UTF-8 (byte 0xff)"),
        ("a.jsonl", b"[" * 100_000, "line 1: the row is no JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 10_000 + b"}", "line 1: "),
        ("a.txt", b"one\ntwo\n\xfe", "line 3: it is not UTF-8 (byte 0xfe)"),
        ("a.jsonl.xz", b"not packed", "cannot be read"),
        ("a.jsonl.gz", b"not packed", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9999, mtime=0)[:-20], "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("a.jsonl.xz", lzma.compress(b'{"text": "a"}\n' * 9999)[:-20], "cannot be read"),
    ],
)
def test_what_is_no_document_is_refused_with_file_and_line(tmp_path, name, data, told):
    with pytest.raises(DocumentError) as caught:
        read(tmp_path / name, data)
    assert told in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DocumentError, match="cannot be read: No such file"):
        list(read_documents(tmp_path / "a.txt"))
    (tmp_path / "directory.txt").mkdir()
    with pytest.raises(DocumentError, match="cannot be read"):
        list(read_documents(tmp_path / "directory.txt"))


def test_a_zstandard_file_is_read_as_the_plain_one_and_a_damaged_one_is_refused(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.compress(b'{"text": "a"}\n{"text": "b"}\n')
    assert read(tmp_path / "a.jsonl.zst", packed) == ["a", "b"]
    with pytest.raises(DocumentError, match=r"a\.jsonl\.zst cannot be read"):
        read(tmp_path / "a.jsonl.zst", b"not packed")


BAD_ROWS = b"".join(
    [
        b'{"body": "first"}\n',
        b"\n",
        b'{"body": ""}\n',
        b'{"body": "' + b"x" * 500 + b'"}\n',
        b'{"body": "\xff"}\n',
        b'{"text": "other"}\n',
        b"{\n",
        b'{"body": "last"}',
    ]
)


def test_bad_rows_are_told_with_file_and_line_and_left_out_where_that_is_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BAD_ROWS)
    told: list[DocumentError] = []
    rules = RowRules("body", largest_row_bytes=100, allow_empty=False, on_bad_row=told.append)
    assert list(read_documents(tmp_path / "a.jsonl", rules)) == ["first", "last"]
    texts = [str(error).removeprefix(f"{tmp_path / 'a.jsonl'}, ") for error in told]
    assert texts[:5] == [
        "line 2: the row is empty",
        'line 3: "body" is empty',
        "line 4: the row is longer than 100 bytes",
        "line 5: it is not UTF-8 (byte 0xff)",
        'line 6: the row has no field "body"',
    ]
    assert texts[5].startswith("line 7: the row is no JSON")


def test_the_first_bad_row_is_refused_where_nobody_takes_it(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(BAD_ROWS)
    with pytest.raises(DocumentError, match="line 2: the row is empty"):
        list(read_documents(tmp_path / "a.jsonl", RowRules("body", allow_empty=False)))


def test_a_row_of_the_largest_size_is_a_document(tmp_path):
    row = b'{"text": "abc"}'
    (tmp_path / "a.jsonl").write_bytes(row + b"\n" + row)
    rules = RowRules(largest_row_bytes=len(row))
    assert list(read_documents(tmp_path / "a.jsonl", rules)) == ["abc", "abc"]
    with pytest.raises(DocumentError, match="line 1: the row is longer than 14 bytes"):
        list(read_documents(tmp_path / "a.jsonl", RowRules(largest_row_bytes=len(row) - 1)))
