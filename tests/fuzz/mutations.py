"""Damage to files: bytes changed, cut and inserted; JSON with an odd value. Everything follows from a seed."""

import copy
import json
import struct
from random import Random
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 2**31, 2**63, 2**64,
    10**30, "", "x", "\x00", "\ud800", "\u202e", "a\nb", "<bos>", "{{ 1/0 }}",
    "{% for i in range(10**9) %}{% endfor %}", "../../etc/passwd", "x" * 5000, [], {}, [[]], [None], {"": {}},
    [0] * 50, ["recurrent"],
]  # fmt: skip
ODD_BYTES = [
    b"", b"\x00", b"\xff", b"\xed\xa0\x80", b"\n", b'"', b"\\", b"{", b"}", b"[" * 2000, b"]", b",", b":", b"null",
    b"-1", b"1e999", b"9" * 6000, b"NaN", b"\\ud800", b"\xef\xbb\xbf",
]  # fmt: skip


def damaged(data: bytes, random: Random) -> bytes:
    """The bytes with one to three mutations."""
    for _ in range(random.choice([1, 1, 2, 3])):
        data = random.choice([_flip, _flip, _replace, _truncate, _insert, _delete, _repeat])(data, random)
    return data


def damaged_json(data: bytes, random: Random) -> bytes:
    """A JSON document with a value replaced, removed, or put under another name; still JSON."""
    document = json.loads(data)
    _mutate_value(document, random)
    return json.dumps(document).encode()


def damaged_header(data: bytes, random: Random) -> bytes:
    """A safetensors file whose header is still JSON, with one value changed."""
    (size,) = struct.unpack("<Q", data[:8])
    header = damaged_json(data[8 : 8 + size], random)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def _place(data: bytes, random: Random) -> int:
    """Anywhere, half of the time near the front, where headers are."""
    return random.randrange(min(len(data), random.choice([200, len(data)])) + 1) if data else 0


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    place = min(_place(data, random), len(data) - 1)
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _replace(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + random.randbytes(random.choice([1, 4, 8])) + data[place + 8 :]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _insert(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + random.choice([*ODD_BYTES, random.randbytes(9)]) + data[place:]


def _delete(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[:place] + data[place + random.choice([1, 2, 20]) :]


def _repeat(data: bytes, random: Random) -> bytes:
    place = _place(data, random)
    return data[: place + random.choice([1, 20, 300])] + data[place:]


def _mutate_value(document: Any, random: Random) -> None:
    """Walks down to a random value and changes it."""
    parent = document
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = random.choice(keys)
        child = parent[key]
        if not (isinstance(child, dict | list) and child and random.random() < 0.8):
            break
        parent = child
    change = random.choice(["odd", "odd", "odd", "near", "remove", "rename", "other"])
    if change == "odd":
        parent[key] = random.choice(ODD_VALUES)
    elif change == "near" and isinstance(child, int) and not isinstance(child, bool):
        parent[key] = random.choice([child + 1, child - 1, 2 * child, -child, child * 10**6])
    elif change == "remove":
        del parent[key]
    elif change == "rename" and isinstance(parent, dict):
        parent[random.choice(["", "x", key + "x", key.upper()])] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(parent[random.choice(keys)])
