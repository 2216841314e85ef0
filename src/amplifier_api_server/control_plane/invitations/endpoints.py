"""The invitations' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.invitations import service
from amplifier_api_server.control_plane.invitations.schemas import (
    CreatedInvitation,
    CreateInvitation,
    InvitationPage,
    InvitationView,
)
from amplifier_api_server.control_plane.listing import NewestFirst
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import BY_CREATION, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.ids import InvitationId

router = APIRouter(prefix="/v1/invitations", tags=["members"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createInvitation", responses=problems(401, 403, 409, 422, 429))
async def create_invitation(
    body: CreateInvitation, principal: Caller, uses: Uses, response: Response
) -> CreatedInvitation:
    """Invite somebody to become a member. The answer holds the token, once; sending it is yours."""
    made = await service.create(uses, principal.tenant_id, principal, body.wish())
    response.headers["Location"] = f"/v1/invitations/{made.row.id}"
    return CreatedInvitation.of_new(made, uses.settings, uses.clock.now())


@router.get("", operation_id="listInvitations", responses=problems(401, 403, 422, 429))
async def list_invitations(
    principal: Caller,
    uses: Uses,
    asked: NewestFirst,
) -> InvitationPage:
    """Your tenant's invitations, newest first, whatever became of them."""
    found = await service.page(uses, principal.tenant_id, asked.page(BY_CREATION))
    now = uses.clock.now()
    views = shown(found[: asked.size], lambda one: InvitationView.of(one, now))
    return InvitationPage(invitations=views, next_cursor=asked.following(found, BY_CREATION))


@router.get("/{invitation_id}", operation_id="getInvitation", responses=problems(401, 403, 404, 429))
async def get_invitation(invitation_id: str, principal: Caller, uses: Uses) -> InvitationView:
    """One invitation, whatever became of it."""
    found = await service.find(uses, principal.tenant_id, InvitationId(invitation_id))
    return InvitationView.of(found, uses.clock.now())


@router.delete(
    "/{invitation_id}", status_code=204, operation_id="revokeInvitation", responses=problems(401, 403, 404, 429)
)
async def revoke_invitation(invitation_id: str, principal: Caller, uses: Uses) -> Response:
    """Revoke an invitation that nobody has taken yet."""
    await service.revoke(uses, principal.tenant_id, principal, InvitationId(invitation_id))
    return Response(status_code=204)
