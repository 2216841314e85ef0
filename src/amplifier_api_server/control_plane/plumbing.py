"""Health, readiness and metrics: for whoever runs the server, open to whoever reaches it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.control_plane.services import Services, services

router = APIRouter(tags=["operations"])

Uses = Annotated[Services, Depends(services)]

_STALE_SECONDS = 30.0  # a reconciler that finished no pass for so long is stuck


class Health(Answer):
    status: Literal["alive"] = "alive"


class Readiness(Answer):
    status: Literal["ready", "not ready"]
    missing: list[str]
    models: Literal["demo", "configured"]
    sandbox: str


@router.get("/health", operation_id="health")
async def health() -> Health:
    """The process is alive."""
    return Health()


@router.get("/ready", operation_id="ready", responses={503: {"model": Readiness, "description": "What is not ready"}})
async def ready(uses: Uses, response: Response) -> Readiness:
    """Whether it can serve; if not, what is missing."""
    missing = await _missing(uses)
    response.status_code = 503 if missing else 200
    return Readiness(
        status="not ready" if missing else "ready",
        missing=missing,
        models="demo" if uses.gateway.is_demo else "configured",
        sandbox=uses.settings.sandbox.mode,
    )


async def _missing(uses: Services) -> list[str]:
    missing = []
    if uses.fleet.is_closing:
        missing.append("the server is stopping")
    if not await uses.database.is_ready():
        missing.append("the database does not answer")
    finished = uses.reconciler.finished_at
    if finished is None:
        missing.append("the reconciler has not finished a pass")
    elif uses.clock.monotonic() - finished > _STALE_SECONDS:
        missing.append("the reconciler is stuck")
    if not await uses.catalogue.is_known():
        missing.append("no sandbox has started yet")
    return missing


def metrics_at(path: str) -> APIRouter:
    """Prometheus' text format, where `metrics.endpoint` says."""
    made = APIRouter(tags=["operations"])

    @made.get(
        path,
        operation_id="metrics",
        response_class=Response,
        responses={200: {"description": "OK", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(uses: Uses) -> Response:
        """Counters and durations; no label names a tenant, a session or a key."""
        return Response(uses.telemetry.exposition(), media_type=CONTENT_TYPE_LATEST)

    return made
