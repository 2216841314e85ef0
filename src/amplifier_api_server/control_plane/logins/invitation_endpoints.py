"""The page that an invitation's link opens, and its form. They translate; `invitations.service` decides."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from pydantic import StringConstraints

from amplifier_api_server.control_plane.html_page import HEADERS
from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.logins import csrf, pages, service
from amplifier_api_server.control_plane.logins.endpoints import HTML, failure
from amplifier_api_server.control_plane.logins.places import HOME
from amplifier_api_server.control_plane.logins.reading import body_docs, body_of
from amplifier_api_server.control_plane.openapi import pages_or_problems
from amplifier_api_server.control_plane.schemas import Body
from amplifier_api_server.control_plane.services import Services, services
from amplifier_api_server.tenants.errors import DomainError

router = APIRouter(prefix="/auth/invitation", tags=["logins"])

Uses = Annotated[Services, Depends(services)]
_Text = Annotated[str, StringConstraints(max_length=200)]


class JoinTenant(Body):
    """What the page's form sends."""

    token: _Text
    csrf_token: _Text


@router.get(
    "",
    operation_id="invitationPage",
    response_class=HTMLResponse,
    responses={200: HTML, **pages_or_problems(401, 403, 404, 409, 410, 422)},
)
async def invitation_page(request: Request, uses: Uses, token: Annotated[str, Query(max_length=200)] = "") -> Response:
    """The page on which somebody who was invited joins. Opening it changes nothing."""
    try:
        found = await service.find_current(uses, request.scope["headers"])
        if found is None:
            return _page(pages.invited_page(list(uses.logins.providers.methods.values()), token), 401)
        offer = await invitations.offered(uses, found.person, token)
        return _page(pages.join_page(await service.info(uses, found), offer, token))
    except DomainError as error:
        return failure(request, uses, error)


@router.post(
    "",
    operation_id="joinTenant",
    status_code=303,
    response_class=Response,
    responses={
        303: {"description": "See other", "headers": {"Location": {"schema": {"type": "string"}}}},
        **pages_or_problems(401, 403, 404, 409, 410, 413, 422),
    },
    openapi_extra=body_docs(JoinTenant, json=False),
)
async def join_tenant(request: Request, uses: Uses) -> Response:
    """Become a member, and act as it from now on: what the page's form sends."""
    try:
        csrf.require_same_origin(uses.settings, request.scope["headers"])
        body = await body_of(request, JoinTenant)
        found = await service.current(uses, request.scope["headers"])
        csrf.require_token(found.secret, body.csrf_token)
        await service.accept_invitation(uses, found, body.token)
    except DomainError as error:
        return failure(request, uses, error)
    return RedirectResponse(HOME, status_code=303)


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status_code=status, headers=HEADERS)
