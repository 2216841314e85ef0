"""The endpoints of device logins: two for devices, two for the person's browser. They translate; `devices` decides."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.errors import problem, status_of
from amplifier_api_server.control_plane.html_page import HEADERS
from amplifier_api_server.control_plane.logins import csrf, devices, pages, service, tickets
from amplifier_api_server.control_plane.logins.devices import PollError
from amplifier_api_server.control_plane.logins.endpoints import HTML, failure
from amplifier_api_server.control_plane.logins.places import own_origin
from amplifier_api_server.control_plane.logins.reading import body_docs, body_of, wants_page
from amplifier_api_server.control_plane.logins.schemas import (
    DecideDevice,
    DeviceRefusal,
    DeviceToken,
    FinishDevice,
    StartDevice,
    StartedDeviceView,
)
from amplifier_api_server.control_plane.logins.user_codes import normal
from amplifier_api_server.control_plane.openapi import pages_or_problems, problems
from amplifier_api_server.control_plane.services import Services, services
from amplifier_api_server.tenants.errors import DomainError, NotFound, Unauthenticated

router = APIRouter(prefix="/auth/device", tags=["logins"])

Uses = Annotated[Services, Depends(services)]

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:device_code"
_BAD_REQUEST: Final = 400


@router.post(
    "/code",
    operation_id="startDeviceLogin",
    responses=problems(403, 413, 422, 429, 503),
    openapi_extra=body_docs(StartDevice),
)
async def start_device_login(request: Request, uses: Uses) -> StartedDeviceView:
    """Begin: a code that the device keeps, and one that a person types at `verification_uri` (RFC 8628, 3.2)."""
    body = await body_of(request, StartDevice)
    origin = own_origin(uses.settings, request.scope["headers"])
    made = await devices.start(uses, body.client_name)
    uri = f"{origin}{pages.DEVICE}"
    return StartedDeviceView(
        device_code=made.device_code,
        user_code=made.user_code,
        verification_uri=uri,
        verification_uri_complete=f"{uri}?user_code={made.user_code}",
        expires_in=made.expires_in_seconds,
        interval=devices.INTERVAL_SECONDS,
    )


@router.post(
    "/token",
    operation_id="finishDeviceLogin",
    response_model=DeviceToken,
    response_model_exclude_none=True,  # RFC 6749, 5.1: what is unknown is left out
    responses={400: {"model": DeviceRefusal, "description": "RFC 8628, 3.5"}, **problems(413, 422, 429, 503)},
    openapi_extra=body_docs(FinishDevice),
)
async def finish_device_login(request: Request, uses: Uses) -> DeviceToken | Response:
    """Ask whether the person has decided; the API key, once (RFC 8628, 3.4)."""
    body = await body_of(request, FinishDevice)
    try:
        if body.grant_type != GRANT_TYPE:
            raise PollError(
                "unsupported_grant_type", f"grant_type should be {GRANT_TYPE}", code="unsupported_grant_type"
            )
        made = await devices.finish(uses, body.device_code)
    except PollError as error:
        found = problem(_BAD_REQUEST, error.stable_code, error.detail)
        told = {"error": error.error, "error_description": error.detail, **found}
        return JSONResponse(told, status_code=_BAD_REQUEST)
    left = None if made.expires_at is None else max(0, int(made.expires_at - uses.clock.now().timestamp()))
    return DeviceToken(
        access_token=made.text, expires_in=left, key_id=made.key_id, tenant_id=made.tenant_id, is_new=made.is_new
    )


@router.get(
    "",
    operation_id="devicePage",
    response_class=HTMLResponse,
    responses={200: HTML, **pages_or_problems(403, 404, 422, 429)},
)
async def device_page(request: Request, uses: Uses, user_code: Annotated[str, Query(max_length=64)] = "") -> Response:
    """The page on which a person lets a device in. What the device is, is shown to who said who they are."""
    try:
        found = await service.find_current(uses, request.scope["headers"])
        code = normal(user_code)
        if found is None:
            return _stranger(uses, code or "")
        info = await service.info(uses, found)
        by = service.acting(uses, found)
        if by is None or not user_code:
            return _page(pages.code_page(info))
        try:
            grant = await devices.find(uses, by, user_code)
        except NotFound as error:
            return _page(pages.code_page(info, wrong=error.detail), 404)
        return _page(pages.confirm_page(info, grant, code or ""))
    except DomainError as error:
        return failure(request, uses, error)


@router.post(
    "/decide",
    operation_id="decideDeviceLogin",
    response_class=HTMLResponse,
    responses={200: HTML, **pages_or_problems(401, 403, 404, 409, 413, 422, 429, 503)},
    openapi_extra=body_docs(DecideDevice, json=False),
)
async def decide_device_login(request: Request, uses: Uses) -> Response:
    """What the page's form sends: let the device in or not, as who is logged in, or by a key."""
    try:
        csrf.require_same_origin(uses.settings, request.scope["headers"])
        body = await body_of(request, DecideDevice)
        if body.decision == "look":
            return await _look_or_again(request, uses, body)
        by, key_text, code = await _decider(request, uses, body)
        approves = body.decision == "approve"
        grant = await devices.decide(uses, by, code, approves=approves, key_text=key_text)
        return _page(pages.decided_page(grant, approved=approves))
    except DomainError as error:
        return failure(request, uses, error)


async def _look_or_again(request: Request, uses: Services, body: DecideDevice) -> Response:
    """What a key would let in; somebody who mistyped it, or the code, has the form again."""
    try:
        return await _look(uses, body)
    except (Unauthenticated, NotFound) as error:
        if not wants_page(request):
            raise
        return _stranger(uses, normal(body.user_code) or "", wrong=error)


async def _look(uses: Services, body: DecideDevice) -> Response:
    """A key was shown: what it would let in."""
    by = await tickets.principal_of_key(uses, body.api_key)
    grant = await devices.find(uses, by, body.user_code)
    code = normal(body.user_code) or ""
    ticket = tickets.sealed(uses, body.api_key.strip(), code)
    return _page(pages.confirm_key_page(grant, code, body.api_key.strip(), ticket))


async def _decider(request: Request, uses: Services, body: DecideDevice) -> tuple[Principal, str | None, str]:
    """Who decides, with which key, on which code."""
    if body.ticket:
        key_text, code = tickets.opened(uses, body.ticket)
        return await tickets.principal_of_key(uses, key_text), key_text, code
    found = await service.current(uses, request.scope["headers"])
    csrf.require_token(found.secret, body.csrf_token)
    return service.require_acting(uses, found), None, body.user_code


def _stranger(uses: Services, code: str, *, wrong: DomainError | None = None) -> Response:
    methods = list(uses.logins.providers.methods.values())
    page = pages.stranger_page(
        methods, code, takes_keys=bool(uses.settings.auth.keys), wrong=wrong.detail if wrong else ""
    )
    return _page(page, status_of(wrong) if wrong else 200)


def _page(html: str, status: int = 200) -> Response:
    return HTMLResponse(html, status_code=status, headers=HEADERS)
