"""What runs and what waits in all sessions of a tenant: for whoever polls. They translate; the services decide."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import NewestFirst, OldestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_START, shown
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.sessions.approvals import BY_EXPIRY
from amplifier_api_server.control_plane.sessions.schemas import ApprovalPage, ExecutionPage, TurnState
from amplifier_api_server.tenants.repository.turns import Wanted

router = APIRouter(prefix="/v1", tags=["sessions"])

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]
OfSession = Annotated[str | None, Query(max_length=64, description="of this session alone")]


@router.get("/executions", operation_id="listTenantExecutions", responses=problems(401, 403, 404, 422, 429))
async def list_tenant_executions(
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
    session_id: OfSession = None,
    status: Annotated[list[TurnState] | None, Query()] = None,
    member_id: Annotated[str | None, Query(max_length=64, description="begun by this member")] = None,
) -> ExecutionPage:
    """The executions of all of your tenant's sessions, newest first."""
    wanted = Wanted(session_id, status, member_id)
    found = await uses.sessions.executions(principal.tenant_id, wanted, asked.page(BY_START))
    views = shown(found[: asked.size], uses.sessions.execution_view)
    return ExecutionPage(executions=views, next_cursor=asked.following(found, BY_START))


@router.get("/approvals", operation_id="listTenantApprovals", responses=problems(401, 403, 422, 429))
async def list_tenant_approvals(
    principal: Caller, uses: Uses, asked: OldestFirst, session_id: OfSession = None
) -> ApprovalPage:
    """What any of your tenant's executions waits for a person's word on, the most urgent first."""
    found = uses.approvals.waiting(principal.tenant_id, session_id, asked.page(BY_EXPIRY))
    return ApprovalPage(approvals=found[: asked.size], next_cursor=asked.following(found, BY_EXPIRY))
