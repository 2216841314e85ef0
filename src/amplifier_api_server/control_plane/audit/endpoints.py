"""The audit log's endpoints. They translate; `service` decides."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse

from amplifier_api_server.control_plane.audit.schemas import (
    MEDIA_TYPES,
    AuditEntryView,
    AuditPage,
    ExportFormat,
    head,
    lines,
)
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_NUMBER, shown
from amplifier_api_server.control_plane.schemas import Instant
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.tenants.models import AuditEntry
from amplifier_api_server.tenants.repository.audit import Wanted

router = APIRouter(prefix="/v1/audit", tags=["audit"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]
_FILES = {one.partition(";")[0]: {"schema": {"type": "string"}} for one in MEDIA_TYPES.values()}


def _wanted(
    actor: Annotated[str | None, Query(max_length=200, description="a member's id")] = None,
    action: Annotated[str | None, Query(max_length=200, description="an operation's name, such as createKey")] = None,
    target: Annotated[str | None, Query(max_length=200, description="the id or name of what was changed")] = None,
    since: Annotated[Instant | None, Query(description="inclusive")] = None,
    until: Annotated[Instant | None, Query(description="exclusive")] = None,
) -> Wanted:
    return Wanted(actor, action, target, since, until)


Filter = Annotated[Wanted, Depends(_wanted)]
TenantOfOperator = Annotated[str | None, Query(max_length=64, description="for the operator: whose log")]


@router.get("", operation_id="listAuditEntries", responses=problems(401, 403, 404, 422, 429))
async def list_audit_entries(
    principal: Caller,
    uses: Uses,
    wanted: Filter,
    asked: NewestFirst,
    tenant_id: TenantOfOperator = None,
) -> AuditPage:
    """Who changed what, newest first."""
    log = await uses.audit.log_of(principal, tenant_id)
    found = await uses.audit.page(log, wanted, asked.page(BY_NUMBER))
    views = shown(found[: asked.size], AuditEntryView.of)
    return AuditPage(audit_entries=views, next_cursor=asked.following(found, BY_NUMBER))


@router.get(
    "/export",
    operation_id="exportAuditEntries",
    response_class=StreamingResponse,
    responses={
        200: {"description": "OK", "content": _FILES},
        **problems(401, 403, 404, 422, 429),
    },
)
async def export_audit_entries(
    principal: Caller,
    uses: Uses,
    wanted: Filter,
    tenant_id: TenantOfOperator = None,
    format: Annotated[ExportFormat, Query()] = "ndjson",  # noqa: A002 - the parameter's name
) -> StreamingResponse:
    """The log as a file, oldest first. That it was exported is in the log."""
    log = await uses.audit.log_of(principal, tenant_id)
    pages = await uses.audit.export(principal, log, wanted)
    return StreamingResponse(
        _file(pages, format, principal, uses.streams),
        media_type=MEDIA_TYPES[format],
        headers={"content-disposition": f'attachment; filename="audit.{format}"'},
    )


async def _file(
    pages: AsyncIterator[Sequence[AuditEntry]], wanted: ExportFormat, principal: Principal, streams: OpenStreams
) -> AsyncIterator[bytes]:
    """Its bytes. One whose reader may read no more breaks off: a file that ended well would look whole."""
    ended: list[bool] = []

    def end() -> None:
        ended.append(True)

    streams.add(principal, end)
    try:
        yield head(wanted)
        async for rows in pages:
            if ended:
                raise ConnectionAbortedError("whoever exports the audit log may read it no more")
            yield lines(rows, wanted)
    finally:
        streams.remove(principal, end)
