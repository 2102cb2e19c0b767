"""GET /health and /ready."""

from fastapi import APIRouter, Request, Response

from griffinlm.serve.errors import AsciiJSONResponse

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the process can compute at all."""
    is_well = not request.app.state.served.worker.has_failed
    return AsciiJSONResponse({"status": "ok" if is_well else "failed"}, 200 if is_well else 503)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether new work is taken."""
    is_ready = not (request.app.state.served.worker.has_failed or request.app.state.guard.is_draining)
    return AsciiJSONResponse({"status": "ready" if is_ready else "not ready"}, 200 if is_ready else 503)
