"""GET /v1/responses/{id}/input_items: what a stored response answered, page by page."""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from griffinlm.serve.errors import ApiError, LongJSONResponse
from griffinlm.serve.records import Message, Record
from griffinlm.serve.responses import StoredQuery
from griffinlm.serve.served import AskerDependency

MOST_ITEMS = 100

router = APIRouter()


class ItemsQuery(StoredQuery):
    """Which of the items, and in what order."""

    limit: Annotated[int, Field(ge=1, le=MOST_ITEMS)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    """The item, in that order, behind which the page begins."""


@router.get("/v1/responses/{response_id}/input_items")
async def input_items(response_id: str, query: Annotated[ItemsQuery, Query()], asker: AskerDependency) -> Response:
    """All messages in front of the answer, those of the responses that it goes on from among them."""
    served = asker.served
    record = await asker.on_record_thread(served.records.get, asker.tenant, response_id, "response")
    path = await asker.on_record_thread(served.records.path, asker.tenant, record)
    return await asker.on_text_thread(_told, path, query)


def _told(path: Sequence[Record], query: ItemsQuery) -> Response:
    items = [item for passed in path for item in _items(passed)][:-1]
    return LongJSONResponse(_page(items if query.order == "asc" else items[::-1], query))


def _items(record: Record) -> list[dict[str, Any]]:
    """The messages of a record as items, each with an id that stays; a response ends with the item of its output."""
    items = [_item(record, place, message) for place, message in enumerate(record.messages)]
    return [*items[:-1], *record.body["output"]] if record.kind == "response" else items


def _item(record: Record, place: int, message: Message) -> dict[str, Any]:
    digest = hashlib.sha256(f"{record.id} {place}".encode()).hexdigest()
    content: dict[str, Any] = {"type": "input_text", "text": message["content"]}
    if message["role"] == "assistant":
        content = {**content, "type": "output_text", "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{digest[:48]}",
        "type": "message",
        "status": "completed",
        "role": message["role"],
        "content": [content],
    }


def _page(items: list[dict[str, Any]], query: ItemsQuery) -> dict[str, Any]:
    ids = [item["id"] for item in items]
    if query.after is not None and query.after not in ids:
        message = f"after is {query.after[:80]!r}; it must be the id of an item of this response"
        raise ApiError(400, message, param="after", code="invalid_value")
    start = 0 if query.after is None else ids.index(query.after) + 1
    end = start + query.limit
    return {
        "object": "list",
        "data": items[start:end],
        "first_id": next(iter(ids[start:end]), None),
        "last_id": next(reversed(ids[start:end]), None),
        "has_more": end < len(items),
    }
