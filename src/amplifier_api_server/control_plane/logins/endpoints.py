"""The logins' endpoints, for browsers. They translate; `service` decides."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, headers_of, problem_of, status_of
from amplifier_api_server.control_plane.html_page import HEADERS
from amplifier_api_server.control_plane.logins import csrf, pages, service
from amplifier_api_server.control_plane.logins.places import NEXT_PATTERN
from amplifier_api_server.control_plane.logins.reading import query_of, wants_page
from amplifier_api_server.control_plane.logins.schemas import (
    AcceptInvitation,
    LoginMethod,
    LoginMethods,
    LoginView,
    SelectTenant,
)
from amplifier_api_server.control_plane.openapi import pages_or_problems, problems
from amplifier_api_server.control_plane.request_json import JsonRoute
from amplifier_api_server.control_plane.services import Services, services
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import TenantId

router = APIRouter(prefix="/auth", tags=["logins"], route_class=JsonRoute)

Uses = Annotated[Services, Depends(services)]

HTML: dict[str, Any] = {"content": {"text/html": {"schema": {"type": "string"}}}}

_REDIRECT: dict[int | str, dict[str, Any]] = {
    303: {"description": "See other", "headers": {"Location": {"schema": {"type": "string"}}}}
}


def failure(request: Request, uses: Services, error: DomainError) -> Response:
    """A refusal as who asks can read it: a page for a person's browser, a problem for all others."""
    if not wants_page(request):
        raise error
    return _failed(request, uses, error)


def _failed(request: Request, uses: Services, error: DomainError) -> Response:
    status = status_of(error)
    uses.telemetry.api_error(error=error.stable_code, status=status)
    answer: Response
    if wants_page(request):
        answer = HTMLResponse(pages.problem_page(error), status_code=status, headers=HEADERS)
    else:
        answer = JSONResponse(problem_of(error), status_code=status, media_type=PROBLEM_TYPE)
    for name, value in headers_of(error):
        answer.headers.append(name.decode(), value.decode())
    return answer


def _with_cookies(answer: Response, cookies: list[tuple[str, str]]) -> Response:
    for name, value in cookies:
        answer.headers.append(name, value)
    return answer


@router.get("/methods", operation_id="listLoginMethods")
async def list_login_methods(uses: Uses) -> LoginMethods:
    """The ways to log in."""
    methods = [LoginMethod.of(one) for one in uses.logins.providers.methods.values()]
    takes_keys = bool(uses.settings.auth.keys)
    return LoginMethods(logins=methods, api_keys=takes_keys, device_login=takes_keys)


@router.get(
    "/login/{provider}",
    operation_id="startLogin",
    status_code=303,
    response_class=Response,
    responses={**_REDIRECT, **pages_or_problems(401, 403, 404, 422, 503)},
)
async def start_login(
    provider: str,
    request: Request,
    uses: Uses,
    following: Annotated[str | None, Query(alias="next", max_length=1024, pattern=NEXT_PATTERN)] = None,
    link: bool = False,
    csrf_token: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """Send the browser to a provider. `next` is a path, where it ends; `link` adds an identity to who is logged in."""
    try:
        started = await service.start(
            uses, provider, request.scope["headers"], following=following, link=link, csrf_token=csrf_token
        )
    except DomainError as error:
        return failure(request, uses, error)
    answer = RedirectResponse(started.location, status_code=303, headers={"referrer-policy": "no-referrer"})
    return _with_cookies(answer, list(started.cookies))


@router.get(
    "/callback/{provider}",
    operation_id="finishLogin",
    status_code=303,
    response_class=Response,
    responses={**_REDIRECT, **pages_or_problems(403, 404, 409, 422, 429, 503)},
)
async def finish_login(provider: str, request: Request, uses: Uses) -> Response:
    """Where a provider sends the browser back to: who logged in gets a cookie, and goes on to `next`."""
    headers, state = request.scope["headers"], ""
    try:
        query = query_of(request)
        state = query.get("state", "")
        finished = await service.finish(uses, provider, headers, query)
    except DomainError as error:
        # An answer that belongs to another login may be somebody's who wants to disturb: the one that was begun goes on.
        # And who was refused before the provider was asked may send theirs again.
        keeps = error.stable_code in ("login_state", "public_url_missing", "too_many_attempts", "busy")
        forgetting = [] if keeps else [service.forgetting(uses, headers, state)]
        return _with_cookies(_failed(request, uses, error), forgetting)
    answer = RedirectResponse(finished.next, status_code=303, headers={"referrer-policy": "no-referrer"})
    return _with_cookies(answer, list(finished.cookies))


@router.get(
    "/session",
    operation_id="getLogin",
    response_model=LoginView,
    responses={200: HTML, **pages_or_problems(401)},
)
async def get_login(request: Request, uses: Uses) -> Any:
    """Who is logged in by the cookie, of which tenants they are members, and the token for what changes something."""
    is_page = wants_page(request)
    methods = list(uses.logins.providers.methods.values())
    found = await service.find_current(uses, request.scope["headers"])
    if found is None and is_page:
        return HTMLResponse(pages.nobody_page(methods), status_code=401, headers=HEADERS)
    info = await service.info(uses, await service.current(uses, request.scope["headers"]) if found is None else found)
    if is_page:
        return HTMLResponse(pages.session_page(info), headers=HEADERS)
    return LoginView.of(info)


async def _current(request: Request, uses: Services) -> service.Current:
    """Who is logged in, with a request that our own page means."""
    headers = request.scope["headers"]
    found = await service.current(uses, headers)
    csrf.require(uses.settings, request.method, headers)
    return found


@router.post("/tenant", operation_id="selectTenant", responses=problems(401, 403, 404, 422))
async def select_tenant(body: SelectTenant, request: Request, uses: Uses) -> LoginView:
    """Act as a member of another tenant from now on. What the login has open ends."""
    await service.select_tenant(uses, await _current(request, uses), TenantId(body.tenant_id))
    return LoginView.of(await service.info(uses, await service.current(uses, request.scope["headers"])))


@router.post("/logout", operation_id="logOut", status_code=204, responses=problems(401, 403))
async def log_out(request: Request, uses: Uses) -> Response:
    """End the login: its cookie is good for nothing from now on, and what it has open ends."""
    headers = request.scope["headers"]
    await service.log_out(uses, await _current(request, uses))
    return _with_cookies(Response(status_code=204), [service.clearing_login(uses, headers)])


@router.post("/invitations/accept", operation_id="acceptInvitation", responses=problems(401, 403, 404, 409, 410, 422))
async def accept_invitation(body: AcceptInvitation, request: Request, uses: Uses) -> LoginView:
    """Become a member of the tenant that invites, and act as it."""
    await service.accept_invitation(uses, await _current(request, uses), body.token)
    return LoginView.of(await service.info(uses, await service.current(uses, request.scope["headers"])))
