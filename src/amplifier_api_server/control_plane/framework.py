"""FastAPI, for every endpoint that is not hot: its routers, its refusals in our own words, its document.

Owns nothing that runs. Refuses to answer by itself: what goes wrong is raised on to the edge, which says it as a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from amplifier_api_server import __version__
from amplifier_api_server.control_plane import documentation, plumbing, wrong_fields
from amplifier_api_server.control_plane.accounts import endpoints as accounts
from amplifier_api_server.control_plane.audit import endpoints as audit
from amplifier_api_server.control_plane.catalog import endpoints as catalog
from amplifier_api_server.control_plane.errors import NO_SUCH_PATH, NotJson
from amplifier_api_server.control_plane.invitations import endpoints as invitations
from amplifier_api_server.control_plane.keys import endpoints as keys
from amplifier_api_server.control_plane.limits import endpoints as limits
from amplifier_api_server.control_plane.logins import device_endpoints as device_logins
from amplifier_api_server.control_plane.logins import endpoints as logins
from amplifier_api_server.control_plane.logins import invitation_endpoints as invited_logins
from amplifier_api_server.control_plane.me import endpoints as me
from amplifier_api_server.control_plane.members import endpoints as members
from amplifier_api_server.control_plane.models import endpoints as models
from amplifier_api_server.control_plane.openapi import install
from amplifier_api_server.control_plane.provider_keys import endpoints as provider_keys
from amplifier_api_server.control_plane.roles import endpoints as roles
from amplifier_api_server.control_plane.routes import RouteTable
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.sessions import approval_endpoints, tenant_endpoints
from amplifier_api_server.control_plane.sessions import endpoints as sessions_endpoints
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.tenant_events import endpoints as tenant_events
from amplifier_api_server.control_plane.usage import endpoints as usage
from amplifier_api_server.control_plane.web import endpoints as web
from amplifier_api_server.control_plane.websocket import endpoints as websocket
from amplifier_api_server.control_plane.written_docs import introduction
from amplifier_api_server.tenants.errors import DomainError, Malformed, NotFound

_EXPOSED_HEADERS: Final = (  # those that the Fetch standard does not expose by itself
    *("X-Request-Id", "Retry-After", "Location", "ETag", "Idempotent-Replayed", "WWW-Authenticate", "Allow"),
    *("RateLimit", "RateLimit-Policy"),
    *("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
    *("X-RateLimit-Limit-Tokens", "X-RateLimit-Remaining-Tokens", "X-RateLimit-Reset-Tokens"),
)


class _Framework(FastAPI):
    """FastAPI without its last resort, which would answer 500 before the edge can say what was wrong."""

    def build_middleware_stack(self) -> Any:
        return ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=self.exception_handlers)


def framework(settings: Settings, routes: RouteTable) -> FastAPI:
    """FastAPI, for everything that is not hot."""
    app = _Framework(
        title="Amplifier API",
        version=__version__,
        description=introduction(),
        openapi_url=None,  # `documentation` has it
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (
        sessions_endpoints,
        approval_endpoints,
        tenant_endpoints,
        catalog,
        keys,
        me,
        members,
        invitations,
        logins,
        device_logins,
        invited_logins,
        roles,
        provider_keys,
        models,
        web,
        usage,
        limits,
        audit,
        tenant_events,
        accounts,
        plumbing,
        documentation,
        websocket,
    ):
        app.include_router(router.router)
    if settings.metrics.enabled:
        app.include_router(plumbing.metrics_at(settings.metrics.endpoint))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_served)
    for path, one in _endpoints(app.routes):
        if path.startswith("/v1/"):
            for method in one.methods or ():
                routes.learn(method, path, _query_of(one.dependant))
    install(app, routes, settings.auth)
    return app


def _endpoints(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, APIRoute]]:
    """Each with its path, those of routers within routers too."""
    for one in routes:
        if isinstance(one, APIRoute):
            yield prefix + one.path, one
        elif (router := getattr(one, "original_router", None)) is not None:
            yield from _endpoints(router.routes, prefix + one.include_context.prefix)


def _query_of(dependant: Dependant) -> Iterator[str]:
    """The names of the parameters that it takes of a query."""
    yield from (one.alias for one in dependant.query_params)
    for part in dependant.dependencies:
        yield from _query_of(part)


def openapi_document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings; nothing is started for it."""
    return framework(settings, route_table(settings, None)).openapi()


async def _invalid(_request: Any, error: Exception) -> Any:
    """The framework's refusal, as ours: the edge turns it into a problem."""
    assert isinstance(error, RequestValidationError)
    refused = error.errors()
    found = wrong_fields.told(refused)
    raise Malformed(wrong_fields.detail(found, len(refused)), errors=found) from None


async def _not_served(_request: Any, error: Exception) -> Any:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, DomainError):  # the edge's own, raised as the framework read the body
        raise error.__cause__ from None
    if error.status_code == HTTPStatus.BAD_REQUEST:
        raise NotJson("the body is no JSON: it is not UTF-8, or can't be parsed") from None
    raise NotFound(NO_SUCH_PATH, code="no_such_path") from None


def with_cors(inner: Any, settings: Settings) -> Any:
    """`inner`, for pages of the named origins: what they may send, and which headers of an answer they may read.

    Credentials of a browser are not allowed, so a header that a page adds is worth no more than one that any program sends.
    """
    cors = settings.cors
    own = ["Authorization", "Content-Type", "Last-Event-ID", "Idempotency-Key"]
    return CORSMiddleware(
        inner,
        allow_origins=list(cors.allowed_origins),
        allow_methods=[*cors.allowed_methods, *(["HEAD"] if "GET" in cors.allowed_methods else [])],
        allow_headers=[*own, *(one.header for one in settings.auth.keys), *cors.allowed_headers],
        expose_headers=_EXPOSED_HEADERS,
    )
