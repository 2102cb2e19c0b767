"""States as one piece of bytes that only a key makes and only the same key opens.

    magic, format version, length of the header, header (JSON: fingerprint, lengths of records), records, HMAC-SHA256

Nothing is read from the bytes before the signature over all of them is found right.
"""

import dataclasses
import hmac
import json
from collections.abc import Sequence

from griffinlm.generation.store.errors import SignatureError
from griffinlm.state import Fingerprint

MAGIC = b"griffinlm states"
FORMAT_VERSION = 1
SIGNATURE_BYTES = 32
LEAST_KEY_BYTES = 16
NUMBER_BYTES = 8


def seal(records: Sequence[bytes], fingerprint: Fingerprint, key: bytes) -> bytes:
    """Records, the model that they belong to, and a signature.

    Raises:
        SignatureError: the key is too short.
    """
    header = json.dumps(
        {"fingerprint": dataclasses.asdict(fingerprint), "record_bytes": [len(record) for record in records]}
    ).encode()
    body = b"".join([MAGIC, _number(FORMAT_VERSION), _number(len(header)), header, *records])
    return body + hmac.digest(_checked_key(key), body, "sha256")


def unseal(data: bytes, fingerprint: Fingerprint, key: bytes, largest_bytes: int) -> list[bytes]:
    """The records that `seal` was given.

    Raises:
        SignatureError: there are more bytes than allowed, they are no exported states, of another format version,
            changed, cut, signed with another key, or belong to another model.
    """
    key = _checked_key(key)
    if len(data) > largest_bytes:
        raise SignatureError(f"exported states have {len(data)} bytes; at most {largest_bytes} are allowed")
    start = len(MAGIC) + 2 * NUMBER_BYTES
    if not data.startswith(MAGIC) or len(data) < start + SIGNATURE_BYTES:
        raise SignatureError(f"these {len(data)} bytes are no exported states of griffinlm")
    version = int.from_bytes(data[len(MAGIC) : len(MAGIC) + NUMBER_BYTES], "little")
    if version != FORMAT_VERSION:
        raise SignatureError(f"exported states have format version {version}; this program reads {FORMAT_VERSION}")
    view = memoryview(data)
    body, signature = view[:-SIGNATURE_BYTES], view[-SIGNATURE_BYTES:]
    if not hmac.compare_digest(hmac.digest(key, body, "sha256"), signature):
        raise SignatureError(
            "the signature of exported states does not match: they were changed, or the key is another"
        )
    end = start + int.from_bytes(data[start - NUMBER_BYTES : start], "little")
    header = json.loads(bytes(body[start:end]))
    _check_fingerprint(header["fingerprint"], dataclasses.asdict(fingerprint))
    records = []
    for length in header["record_bytes"]:
        records.append(bytes(body[end : end + length]))
        end += length
    assert end == len(body), "a signed header tells the lengths of what follows"
    return records


def _check_fingerprint(found: dict[str, object], expected: dict[str, object]) -> None:
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        raise SignatureError(
            f"exported states belong to another model: other {', '.join(different)}",
            hint="import them with the model, precision and window type they were exported with",
        )


def _checked_key(key: bytes) -> bytes:
    if not isinstance(key, bytes) or len(key) < LEAST_KEY_BYTES:
        found = f"{len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__name__}"
        raise SignatureError(f"the signing key is {found}; it must be at least {LEAST_KEY_BYTES} bytes")
    return key


def _number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "little")
