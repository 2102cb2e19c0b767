"""GET /v1/models."""

from typing import Any

from fastapi import APIRouter, Response

from griffinlm.serve.errors import AsciiJSONResponse
from griffinlm.serve.served import AskerDependency, Served
from griffinlm.state import attention_bytes_per_token

router = APIRouter()


@router.get("/v1/models")
async def models(asker: AskerDependency) -> Response:
    """The model, and the model with each of its adapters."""
    served = asker.served
    return AsciiJSONResponse({"object": "list", "data": [_table(served, name) for name in served.model_names]})


@router.get("/v1/models/{name}")
async def model(name: str, asker: AskerDependency) -> Response:
    """One of them."""
    asker.served.adapter(name)
    return AsciiJSONResponse(_table(asker.served, name))


def _table(served: Served, name: str) -> dict[str, Any]:
    model = served.model
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "griffinlm",
        "state_bytes": served.worker.service.state_bytes,
        "attention_bytes_per_token": attention_bytes_per_token(model.config, model.window_dtype),
        "capacity": served.settings.capacity,
    }
