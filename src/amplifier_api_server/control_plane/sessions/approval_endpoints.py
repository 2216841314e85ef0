"""The approvals' endpoints. They translate; `approvals` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.control_plane.sessions.schemas import AnswerApproval, ApprovalList, ApprovalView
from amplifier_api_server.tenants.ids import ApprovalId, SessionId, TurnId

router = APIRouter(
    prefix="/v1/sessions/{session_id}/executions/{request_id}/approvals", tags=["sessions"], route_class=JsonRoute
)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.get("", operation_id="listApprovals", responses=problems(401, 403, 404, 429, 503))
async def list_approvals(session_id: str, request_id: str, principal: Caller, uses: Uses) -> ApprovalList:
    """What an execution waits for a person's word on, now."""
    found = await uses.approvals.pending(principal.tenant_id, SessionId(session_id), TurnId(request_id))
    return ApprovalList(approvals=found)


@router.post("/{approval_id}", operation_id="answerApproval", responses=problems(401, 403, 404, 409, 422, 429, 503))
async def answer_approval(
    session_id: str, request_id: str, approval_id: str, body: AnswerApproval, principal: Caller, uses: Uses
) -> ApprovalView:
    """Answer it, by one of its options or by yes and no. The first answer counts; what nobody answers is denied."""
    choice = body.choice if body.choice is not None else bool(body.approved)
    return await uses.approvals.answer(
        principal, SessionId(session_id), TurnId(request_id), ApprovalId(approval_id), choice
    )
