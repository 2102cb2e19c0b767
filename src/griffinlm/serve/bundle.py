"""Conversations that leave a server: their records and states as one signed piece of bytes.

magic, HMAC-SHA256 of what follows, length of the table, table (JSON), packs of states
"""

import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import groupby

from griffinlm.generation.store import SignatureError, StateNotFoundError, StateStore, StoreError
from griffinlm.language_model import LanguageModel
from griffinlm.serve.records import Heading, Record
from griffinlm.serve.reply import without_state

MAGIC = b"griffinlm conversations 1\n"
SIGNATURE_BYTES, NUMBER_BYTES = 32, 8
HEADING_BYTES = 4096
"""In front of an object: what lists show of it, to be read without the rest."""


def pack(
    tenant: str, records: Sequence[Record], named: Sequence[str], store: StateStore, model: LanguageModel, key: bytes
) -> bytes:
    """Records, parents first, and the states of those in `named`, as far as they are still kept."""
    told: list[Record] = []
    packs: list[tuple[str | None, list[str], bytes]] = []
    for adapter, group in groupby(sorted(records, key=lambda one: one.adapter or ""), lambda one: one.adapter):
        view, chosen = store.view(model.with_adapter(adapter)), list(group)
        wanted = dict.fromkeys(one.state_id for one in chosen if one.id in named and one.state_id is not None)
        there = [state_id for state_id in wanted if _has(view, tenant, state_id)]
        told += [one if one.state_id in there else without_state(one) for one in chosen]
        if there:
            packs.append((adapter, there, view.export_states(tenant, there, key)))
    order = {record.id: place for place, record in enumerate(records)}
    told.sort(key=lambda one: order[one.id])
    table = {
        "records": [asdict(replace(one, kept_ids=[])) for one in told],
        "packs": [{"adapter": adapter, "ids": ids, "num_bytes": len(data)} for adapter, ids, data in packs],
    }
    header = json.dumps(table).encode()
    content = len(header).to_bytes(NUMBER_BYTES, "little") + header + b"".join(data for _, _, data in packs)
    return MAGIC + hmac.digest(key, content, "sha256") + content


def unpack(
    tenant: str, data: bytes, store: StateStore, model: LanguageModel, key: bytes, largest_bytes: int
) -> list[Record]:
    """The records that `pack` was given, their states in the tenant's store.

    Raises:
        SignatureError: the bytes were changed or cut, signed with another key, or are of another model.
        StoreError: there is no room for a state.
    """
    start = len(MAGIC) + SIGNATURE_BYTES
    if not data.startswith(MAGIC) or len(data) < start + NUMBER_BYTES:
        raise SignatureError(f"these {len(data)} bytes are no conversations of griffinlm")
    content = memoryview(data)[start:]
    if not hmac.compare_digest(hmac.digest(key, content, "sha256"), data[len(MAGIC) : start]):
        raise SignatureError(
            "the signature of the conversations does not match: they were changed, or the key is another"
        )
    end = NUMBER_BYTES + int.from_bytes(content[:NUMBER_BYTES], "little")
    table = json.loads(bytes(content[NUMBER_BYTES:end]))
    new_ids: dict[str, str] = {}
    for one in table["packs"]:
        states, end = bytes(content[end : end + one["num_bytes"]]), end + one["num_bytes"]
        if one["adapter"] is not None and one["adapter"] not in model.adapter_names:
            raise SignatureError(
                f"the conversations were held with adapter {one['adapter']!r}, which is not loaded here"
            )
        view = store.view(model.with_adapter(one["adapter"]))
        new_ids |= zip(one["ids"], view.import_states(tenant, states, key, largest_bytes), strict=True)
    return [_arrived(Record(**fields), new_ids) for fields in table["records"]]


def pack_heading(heading: Heading, key: bytes) -> bytes:
    """What lists show of a record, signed, in `HEADING_BYTES`."""
    content = json.dumps({column.name: getattr(heading, column.name) for column in fields(Heading)}).encode()
    assert len(content) <= HEADING_BYTES - SIGNATURE_BYTES, "ids and names of models are short"
    return (hmac.digest(key, content, "sha256") + content).ljust(HEADING_BYTES)


def unpack_heading(data: bytes, key: bytes) -> Heading:
    """The heading that `pack_heading` was given; SignatureError where it was changed or signed with another key."""
    signature, content = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:].rstrip(b" ")
    if not hmac.compare_digest(hmac.digest(key, content, "sha256"), signature):
        raise SignatureError("the signature of the heading does not match: it was changed, or the key is another")
    return Heading(**json.loads(content))


def _arrived(record: Record, new_ids: dict[str, str]) -> Record:
    """With the state's id as it is in this store."""
    if record.state_id not in new_ids:
        return without_state(record)
    state_id = new_ids[record.state_id]
    return replace(record, state_id=state_id, kept_ids=[state_id])


def _has(store: StateStore, tenant: str, state_id: str) -> bool:
    try:
        store.get(tenant, state_id)
    except StateNotFoundError:
        return False
    except StoreError:
        return False
    return True
