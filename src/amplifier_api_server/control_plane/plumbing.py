"""Health, readiness and metrics: for whoever runs the server, open to whoever reaches it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AwareDatetime

from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.control_plane.services import Services, services

router = APIRouter(tags=["operations"])

Uses = Annotated[Services, Depends(services)]

_STALE_SECONDS = 30.0  # a reconciler that finished no pass for so long is stuck


class Health(Answer):
    status: Literal["alive"] = "alive"


class PartState(Answer):
    """A part of the server. One that is `failing` and not `is_blocking` leaves the server ready."""

    status: Literal["ok", "failing"] = "ok"
    cause: str | None = None
    since: AwareDatetime | None = None
    failures: int = 0
    is_blocking: bool = False


class Readiness(Answer):
    status: Literal["ready", "not ready", "draining"]
    missing: list[str]
    parts: dict[str, PartState]
    models: Literal["demo", "configured"]
    sandbox: str


@router.get("/health", operation_id="health")
async def health() -> Health:
    """The process is alive."""
    return Health()


@router.get("/ready", operation_id="ready", responses={503: {"model": Readiness, "description": "What is not ready"}})
async def ready(uses: Uses, response: Response) -> Readiness:
    """Whether it can serve; if not, what is missing. `parts` says of each whether it works, and why not."""
    parts = await _parts(uses)
    missing = [part.cause or name for name, part in parts.items() if part.is_blocking]
    if uses.fleet.is_closing:
        missing.insert(0, "the server is stopping")
    response.status_code = 503 if missing else 200
    return Readiness(
        status="draining" if uses.fleet.is_closing else "not ready" if missing else "ready",
        missing=missing,
        parts=parts,
        models="demo" if uses.gateway.is_demo else "configured",
        sandbox=uses.settings.sandbox.mode,
    )


async def _parts(uses: Services) -> dict[str, PartState]:
    """What is asked now, and what the parts told by themselves."""
    parts = {name: PartState() for name in ("database", "disk", "reconciler", "sandboxes")}
    for name, found in uses.readiness.failing_parts.items():
        parts[name] = PartState(
            status="failing",
            cause=found.cause,
            since=found.since,
            failures=found.failures,
            is_blocking=found.is_blocking,
        )
    if not await uses.database.is_ready():
        parts["database"] = _blocking("the database does not answer", parts["database"])
    finished = uses.reconciler.finished_at
    if finished is None:
        parts["reconciler"] = _blocking("the reconciler has not finished a pass", parts["reconciler"])
    elif uses.clock.monotonic() - finished > _STALE_SECONDS:
        parts["reconciler"] = _blocking("the reconciler is stuck", parts["reconciler"])
    if not await uses.catalogue.is_known():
        parts["sandboxes"] = _blocking("no sandbox has started yet", parts["sandboxes"])
    if trouble := await uses.disk.trouble():
        parts["disk"] = _blocking("; ".join(trouble), parts["disk"])
    return parts


def _blocking(says: str, told: PartState) -> PartState:
    """The part keeps the server from serving; why, it may have told itself."""
    cause = f"{says}: {told.cause}" if told.cause else says
    return told.model_copy(update={"status": "failing", "cause": cause, "is_blocking": True})


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
