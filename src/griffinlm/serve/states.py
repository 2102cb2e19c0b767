"""/v1/states: conversations as things that are made, copied, carried away and brought back."""

import time
from collections.abc import Sequence
from functools import partial
from secrets import token_hex
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from griffinlm.serve.bundle import pack, unpack
from griffinlm.serve.errors import ApiError, AsciiJSONResponse, LongJSONResponse
from griffinlm.serve.fields import Messages, Strict
from griffinlm.serve.records import Heading, Record
from griffinlm.serve.reply import Reply, forked
from griffinlm.serve.served import Asker, AskerDependency, Served
from griffinlm.serve.stream import while_connected

MOST_IDS = 1000
BYTES = "application/octet-stream"
BODY_OF_BYTES: dict[str, Any] = {
    "requestBody": {"required": True, "content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
}

router = APIRouter()


class StateRequest(Strict):
    """Messages to be read."""

    model: str
    messages: Messages


class ForkRequest(Strict):
    """Where to go on."""

    messages: Messages | None = None
    """Read behind the state, if any."""


class DownloadRequest(Strict):
    """What is to leave."""

    ids: Annotated[list[str], Field(min_length=1, max_length=MOST_IDS, fail_fast=True)]
    """Of states and responses."""


@router.post("/v1/states")
async def create_state(body: StateRequest, asker: AskerDependency) -> Response:
    """Reads messages and keeps where the model then stands; `previous_response_id` takes its id."""
    adapter = asker.served.adapter(body.model)
    # What goes on from a record keeps its messages, but not its instructions.
    reply = Reply(asker, adapter, None, None, [message.plain() for message in body.messages], None)
    return AsciiJSONResponse(await while_connected(asker.request, _read(asker, reply, body.model)))


@router.get("/v1/states")
async def list_states(asker: AskerDependency) -> Response:
    """The newest states and responses."""
    served = asker.served
    records = await asker.on_record_thread(served.records.newest, asker.tenant, MOST_IDS)
    return AsciiJSONResponse({"object": "list", "data": [_table(served, record) for record in records]})


@router.post("/v1/states/download")
async def download_states(body: DownloadRequest, asker: AskerDependency) -> Response:
    """Several states or responses with all that was said up to them, signed."""
    return await _download(asker, body.ids)


@router.post("/v1/states/upload", openapi_extra=BODY_OF_BYTES)
async def upload_states(request: Request, asker: AskerDependency) -> Response:
    """Takes back what was downloaded, here or where the same key signs."""
    data = await request.body()
    served = asker.served
    records = await asker.on_text_thread(_unpacked, asker, data)
    await asker.on_record_thread(partial(served.records.put, asker.tenant, records, keeps_old=True))
    return AsciiJSONResponse({"object": "list", "data": [_table(served, record) for record in records]})


@router.get("/v1/states/{state_id}")
async def get_state(state_id: str, asker: AskerDependency) -> Response:
    """Where a conversation stands, and what was said in it."""
    served = asker.served
    record = await asker.on_record_thread(served.records.get, asker.tenant, state_id)
    path = await asker.on_record_thread(served.records.path, asker.tenant, record)
    said = [message for one in path for message in one.messages]
    table = {**_table(served, record), "instructions": record.instructions, "messages": said}
    return await asker.on_text_thread(LongJSONResponse, table)


@router.delete("/v1/states/{state_id}")
async def delete_state(state_id: str, asker: AskerDependency) -> Response:
    """Removes a state, and what is kept for it alone."""
    await asker.delete(state_id)
    return AsciiJSONResponse({"id": state_id, "object": "state", "deleted": True})


@router.post("/v1/states/{state_id}/fork")
async def fork_state(state_id: str, body: ForkRequest, asker: AskerDependency) -> Response:
    """The same place under an id of its own, or one further on."""
    served = asker.served
    before = await asker.on_record_thread(served.records.get, asker.tenant, state_id)
    if body.messages:
        messages = [message.plain() for message in body.messages]
        reply = Reply(asker, before.adapter, before, before.instructions, messages, None)
        return AsciiJSONResponse(await while_connected(asker.request, _read(asker, reply, before.model)))
    record = forked(before, {"id": _new_id(), "created": int(time.time())})
    await asker.on_record_thread(partial(served.records.put, asker.tenant, [record], before=before))
    return AsciiJSONResponse(_table(served, record))


@router.get("/v1/states/{state_id}/download")
async def download_state(state_id: str, asker: AskerDependency) -> Response:
    """A state or response with all that was said up to it, signed."""
    return await _download(asker, [state_id])


async def _read(asker: Asker, reply: Reply, model_name: str) -> dict[str, Any]:
    await reply.start()
    try:
        end = await reply.end()
        known = {"id": _new_id(), "kind": "state", "model": model_name, "created": int(time.time())}
        record = await reply.record(end, **known)
        if not record.kept_ids and record.state_id is None:
            raise ApiError(
                507, "the state was not kept: there is no room, or it cannot be written", code="store_failed"
            )
        await reply.keep(record)
    finally:
        reply.leave()
    return _table(asker.served, record)


async def _download(asker: Asker, ids: list[str]) -> Response:
    path = await asker.on_record_thread(_paths, asker, ids)
    data = await asker.on_text_thread(_packed, asker, path, ids)
    return Response(data, media_type=BYTES, headers={"content-disposition": 'attachment; filename="states.griffin"'})


def _paths(asker: Asker, ids: list[str]) -> list[Record]:
    served, found = asker.served, dict[str, Record]()
    for one in ids:
        record = served.records.get(asker.tenant, one)
        found |= {passed.id: passed for passed in served.records.path(asker.tenant, record)}
    _require_size(served, [found[one] for one in ids])
    return [*found.values()]


def _packed(asker: Asker, records: list[Record], ids: list[str]) -> bytes:
    served = asker.served
    return pack(asker.tenant, records, ids, served.store, served.model, served.state_key)


def _require_size(served: Served, records: Sequence[Record]) -> None:
    """Refuses states that could not be taken back in one piece."""
    num_states = len({record.state_id for record in records} - {None})
    num_bytes, most = num_states * served.worker.service.state_bytes, served.settings.largest_upload_bytes
    if num_bytes > most:
        message = f"{num_states} states have {num_bytes} bytes together; at most {most} leave at once"
        raise ApiError(400, message, param="ids", code="invalid_value")


def _unpacked(asker: Asker, data: bytes) -> list[Record]:
    served = asker.served
    largest = served.settings.largest_upload_bytes
    return unpack(asker.tenant, data, served.store, served.model, served.state_key, largest)


def _new_id() -> str:
    return f"state_{token_hex(24)}"


def _table(served: Served, record: Heading) -> dict[str, Any]:
    return {
        "id": record.id,
        "object": "state",
        "kind": record.kind,
        "created_at": record.created,
        "model": record.model,
        "parent": record.parent,
        "num_tokens": record.num_tokens,
        "num_bytes": served.worker.service.state_bytes,
    }
