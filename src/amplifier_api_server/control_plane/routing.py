"""Every route of this server, with its permission: the table that the edge matches and the tests go through."""

from __future__ import annotations

from typing import Final

from amplifier_api_server.control_plane.accounts import endpoints as accounts
from amplifier_api_server.control_plane.keys import endpoints as keys
from amplifier_api_server.control_plane.limits import endpoints as limits
from amplifier_api_server.control_plane.models import endpoints as models
from amplifier_api_server.control_plane.openapi import operation
from amplifier_api_server.control_plane.provider_keys import endpoints as provider_keys
from amplifier_api_server.control_plane.routes import Admit, Route, RouteTable
from amplifier_api_server.control_plane.sessions.hot import HotEndpoints
from amplifier_api_server.control_plane.sessions.schemas import (
    Execute,
    ExecutionCancelled,
    ExecutionResult,
    ExecutionView,
)
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.usage import endpoints as usage
from amplifier_api_server.control_plane.web import endpoints as web

_EXECUTION: Final = "/v1/sessions/{session_id}/executions/{request_id}"

_PERMISSIONS: Final[dict[tuple[str, str], str]] = {
    ("GET", "/v1/sessions"): "sessions:read",
    ("GET", "/v1/sessions/{session_id}"): "sessions:read",
    ("DELETE", "/v1/sessions/{session_id}"): "sessions:delete",
    ("GET", "/v1/sessions/{session_id}/messages"): "sessions:read",
    ("GET", "/v1/profiles"): "profiles:read",
    ("POST", "/v1/profiles"): "profiles:write",
    ("GET", "/v1/profiles/{name}"): "profiles:read",
    ("DELETE", "/v1/profiles/{name}"): "profiles:write",
    ("GET", "/v1/tools"): "tools:read",
    ("POST", "/v1/tools/{name}/execute"): "tools:execute",
    ("GET", "/v1/collections"): "collections:read",
    ("GET", "/v1/collections/{name}"): "collections:read",
    ("DELETE", "/v1/collections/{name}"): "collections:remove",
    ("GET", "/v1/collections/installations"): "collections:read",
    ("GET", "/v1/collections/installations/{installation_id}"): "collections:read",
    ("DELETE", "/v1/collections/installations/{installation_id}"): "collections:install",
}

_OPEN: Final = ("/health", "/ready", "/openapi.json", "/docs", "/docs/assets/{name}")


def route_table(settings: Settings, hot: HotEndpoints | None) -> RouteTable:
    """The table, with the hot endpoints bound; without them (None) it is for reading, not for serving."""
    rows = [Route("GET", path) for path in _OPEN]
    if settings.metrics.enabled:
        rows.append(Route("GET", settings.metrics.endpoint))
    rows += _hot(hot)
    rows.append(Route("POST", "/v1/sessions", "sessions:create", Admit.SERVICE))
    rows.append(Route("POST", "/v1/collections", "collections:install", max_body="max_collection"))
    for table in (
        _PERMISSIONS,
        keys.PERMISSIONS,
        provider_keys.PERMISSIONS,
        models.PERMISSIONS,
        web.PERMISSIONS,
        usage.PERMISSIONS,
        accounts.PERMISSIONS,
    ):
        rows += [Route(method, path, permission) for (method, path), permission in table.items()]
    # Never refused for the limits that it explains.
    rows += [Route(method, path, permission, Admit.NOBODY) for (method, path), permission in limits.PERMISSIONS.items()]
    return RouteTable(rows)


def _hot(hot: HotEndpoints | None) -> list[Route]:
    execute = operation(
        operation_id="execute",
        summary="Run one prompt to its end, or stream it",
        answer=ExecutionResult,
        body=Execute,
        streams=True,
        statuses=(401, 403, 404, 409, 410, 413, 422, 429, 502, 503),
    )
    read = (401, 403, 404, 429)
    view = operation(operation_id="getExecution", summary="One execution", answer=ExecutionView, statuses=read)
    events = operation(
        operation_id="streamExecution",
        summary="The events of an execution, from the start or after Last-Event-ID",
        answer=None,
        streams=True,
        statuses=(*read, 422),
    )
    cancel = operation(
        operation_id="cancelExecution", summary="End a running execution", answer=ExecutionCancelled, statuses=read
    )
    return [
        Route(
            "POST",
            "/v1/sessions/{session_id}/execute",
            "sessions:execute",
            Admit.SERVICE,
            handler=hot.execute if hot else None,
            docs=execute,
        ),
        Route("GET", _EXECUTION, "sessions:read", handler=hot.execution if hot else None, docs=view),
        Route("GET", _EXECUTION + "/events", "sessions:read", handler=hot.events if hot else None, docs=events),
        Route("POST", _EXECUTION + "/cancel", "sessions:execute", handler=hot.cancel if hot else None, docs=cancel),
    ]
