"""The invitations' endpoints. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.invitations import service
from amplifier_api_server.control_plane.invitations.schemas import (
    CreatedInvitation,
    CreateInvitation,
    InvitationPage,
    InvitationView,
)
from amplifier_api_server.control_plane.openapi import problems
from amplifier_api_server.control_plane.pages import decode_place, encode_place, shown
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, caller, services
from amplifier_api_server.tenants.ids import InvitationId

router = APIRouter(prefix="/v1/invitations", tags=["members"], route_class=JsonRoute)

Caller = Annotated[Principal, Depends(caller)]
Uses = Annotated[Services, Depends(services)]


@router.post("", status_code=201, operation_id="createInvitation", responses=problems(401, 403, 409, 422, 429))
async def create_invitation(body: CreateInvitation, principal: Caller, uses: Uses) -> CreatedInvitation:
    """Invite somebody to become a member. The answer holds the token, once; sending it is yours."""
    made = await service.create(uses, principal.tenant_id, principal, body.wish())
    return CreatedInvitation.of_new(made, uses.settings, uses.clock.now())


@router.get("", operation_id="listInvitations", responses=problems(401, 403, 422, 429))
async def list_invitations(
    principal: Caller,
    uses: Uses,
    limit: Annotated[int | None, Query(ge=1)] = None,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
) -> InvitationPage:
    """Your tenant's invitations, newest first, whatever became of them."""
    size = uses.settings.api.page_limit(limit)
    found = await service.page(uses, principal.tenant_id, limit=size + 1, before=decode_place(cursor))
    following = encode_place(found[size - 1].created_at, found[size - 1].id) if len(found) > size else None
    now = uses.clock.now()
    return InvitationPage(
        invitations=shown(found[:size], lambda one: InvitationView.of(one, now)), next_cursor=following
    )


@router.delete(
    "/{invitation_id}", status_code=204, operation_id="revokeInvitation", responses=problems(401, 403, 404, 429)
)
async def revoke_invitation(invitation_id: str, principal: Caller, uses: Uses) -> Response:
    """Revoke an invitation that nobody has taken yet."""
    await service.revoke(uses, principal.tenant_id, principal, InvitationId(invitation_id))
    return Response(status_code=204)
