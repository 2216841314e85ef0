"""The usage endpoint. It translates; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import decode_cursor, encode_cursor
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.usage import service
from amplifier_api_server.control_plane.usage.schemas import UsageReport
from amplifier_api_server.tenants.repository.usage import GroupBy

router = APIRouter(prefix="/v1/usage", tags=["usage"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get("", operation_id="getUsage", responses=problems(401, 403, 422, 429))
async def get_usage(
    principal: Caller,
    uses: Uses,
    group_by: Annotated[GroupBy, Query(description="a row for each of these")] = "day",
    begins: Annotated[
        str | None, Query(alias="from", max_length=64, description="inclusive: a UTC date or a time")
    ] = None,
    ends: Annotated[str | None, Query(alias="to", max_length=64, description="exclusive: a UTC date or a time")] = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> UsageReport:
    """What your tenant used. A date counts whole UTC days; a time counts what was recorded from or before it."""
    after = decode_cursor(cursor, 1)[0] if cursor else None
    size = uses.settings.api.page_limit(limit)
    span = service.span_of(begins, ends)
    found = await service.report(uses, principal.tenant_id, group_by, span, after=after, limit=size)
    return UsageReport.of_report(found, encode_cursor(found.next_key) if found.next_key is not None else None)
