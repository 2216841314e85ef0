"""The members' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.members import service
from amplifier_api_server.control_plane.members.schemas import CreateMember, MemberPage, MemberView, UpdateMember
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.ids import MemberId

router = APIRouter(prefix="/v1/members", tags=["members"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createMember", responses=problems(401, 403, 409, 422, 429))
async def create_member(body: CreateMember, principal: Caller, uses: Uses, response: Response) -> MemberView:
    """Create a service: a member without a login. `POST /v1/keys` with its `member_id` gives it a key."""
    made = await service.create(
        uses, principal.tenant_id, principal, name=body.name, role=body.role, limits=body.limits
    )
    response.headers["Location"] = f"/v1/members/{made.id}"
    return MemberView.of(made)


@router.get("", operation_id="listMembers", responses=problems(401, 403, 422, 429))
async def list_members(
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
    kind: Annotated[Literal["person", "service"] | None, Query()] = None,
    status: Annotated[list[Literal["active", "disabled", "removed"]] | None, Query()] = None,
) -> MemberPage:
    """Your tenant's members, newest first; those who are not removed, unless `status` asks for others."""
    statuses = tuple(status) if status else service.THERE
    found = await service.page(uses, principal.tenant_id, asked.page(BY_CREATION), statuses=statuses, kind=kind)
    views = shown(found[: asked.size], MemberView.of)
    return MemberPage(members=views, next_cursor=asked.following(found, BY_CREATION))


@router.get("/{member_id}", operation_id="getMember", responses=problems(401, 403, 404, 429))
async def get_member(member_id: str, principal: Caller, uses: Uses) -> MemberView:
    """One member, removed or not."""
    return MemberView.of(await service.find(uses, principal.tenant_id, MemberId(member_id)))


@router.patch("/{member_id}", operation_id="updateMember", responses=problems(401, 403, 404, 409, 422, 429))
async def update_member(member_id: str, body: UpdateMember, principal: Caller, uses: Uses) -> MemberView:
    """Rename, give another role, disable, enable, or set limits; of nobody who holds more than you do."""
    changed = await service.change(uses, principal.tenant_id, principal, MemberId(member_id), body.wish())
    return MemberView.of(changed)


@router.delete(
    "/{member_id}", status_code=204, operation_id="deleteMember", responses=problems(401, 403, 404, 409, 429)
)
async def delete_member(member_id: str, principal: Caller, uses: Uses) -> Response:
    """Remove a member for good: keys are revoked, logins and open streams end. What they made stays."""
    await service.remove(uses, principal.tenant_id, principal, MemberId(member_id))
    return Response(status_code=204)
