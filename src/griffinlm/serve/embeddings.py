"""POST /v1/embeddings: a text as what the model remembers of it."""

import base64
from collections.abc import Mapping
from typing import Literal

import numpy as np
from fastapi import APIRouter, Response

from griffinlm.generation.job import Job
from griffinlm.serve.errors import ApiError, AsciiJSONResponse
from griffinlm.serve.fields import Strict
from griffinlm.serve.prompts import Prompts, read_prompts
from griffinlm.serve.served import AskerDependency, Served

HIDDEN = ".hidden"
"""How the names of recurrent states end."""
NEVER_READ = 0
"""A token behind the text: a state is handed over before the last token of a document."""
MOST_AT_ONCE = 16

router = APIRouter()


class EmbeddingRequest(Strict):
    """Texts, or tokens, to be turned into vectors."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    """Taken without effect."""


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingRequest, asker: AskerDependency) -> Response:
    """h / |h| for each text, with h the hidden state of the last recurrent block after BOS and the text."""
    served = asker.served
    adapter, width = served.adapter(body.model), _width(served)
    if body.dimensions not in (None, width):
        raise ApiError(
            400, f"dimensions is {body.dimensions}; this model has {width}", param="dimensions", code="invalid_value"
        )
    texts = await asker.on_text_thread(read_prompts, served.tokenizer, body.input, True)
    jobs = [
        Job(
            asker.tenant,
            [*token_ids, NEVER_READ],
            None,
            adapter=adapter,
            keep=False,
            extract=last_hidden,
            timeout_seconds=served.settings.request_timeout_seconds,
        )
        for token_ids in texts
    ]
    data = []
    num_at_once = min(MOST_AT_ONCE, served.most_answers)
    for first in range(0, len(jobs), num_at_once):
        for ends in await asker.ends(jobs[first : first + num_at_once]):
            vector = _normal(ends[0].extracted)
            told = base64.b64encode(vector.tobytes()).decode() if body.encoding_format == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": len(data), "embedding": told})
    num_tokens = sum(len(token_ids) for token_ids in texts)
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return AsciiJSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def last_hidden(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The recurrent state of the last block that has one, float32 [width], of one row."""
    return arrays[[name for name in arrays if name.endswith(HIDDEN)][-1]][0].astype("<f4")


def _normal(vector: np.ndarray) -> np.ndarray:
    size = float(np.linalg.norm(vector))
    return vector if size == 0 else (vector / size).astype("<f4")


def _width(served: Served) -> int:
    recurrent = served.model.config.recurrent
    if recurrent is None:
        raise ApiError(400, "this model has no recurrent state, so it has no embeddings", param="model")
    return recurrent.width
