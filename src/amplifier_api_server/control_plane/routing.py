"""Every route of this server, with its operation: the table that the edge matches and the tests go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from amplifier_api_server.control_plane import body_types
from amplifier_api_server.control_plane.graphql import schemas as graphql_schemas
from amplifier_api_server.control_plane.graphql.door import GraphqlDoor
from amplifier_api_server.control_plane.openapi import operation
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.routes import Handler, Route, RouteTable
from amplifier_api_server.control_plane.sessions.hot import HotEndpoints
from amplifier_api_server.control_plane.sessions.schemas import (
    Execute,
    ExecuteOnce,
    ExecutionCancelled,
    ExecutionResult,
    ExecutionStarted,
    ExecutionView,
)
from amplifier_api_server.control_plane.settings import Settings

_EXECUTION: Final = "/v1/sessions/{session_id}/executions/{request_id}"

_OF_THE_FRAMEWORK: Final[dict[tuple[str, str], str]] = {
    ("GET", "/health"): "health",
    ("GET", "/ready"): "ready",
    ("GET", "/openapi.json"): "openapi",
    ("GET", "/asyncapi.json"): "asyncapi",
    ("GET", "/docs"): "documentation",
    ("GET", "/docs/assets/{name}"): "documentation",
    ("GET", "/docs/{name}"): "documentation",
    ("GET", "/errors"): "documentation",
    ("GET", "/errors/{code}"): "documentation",
    ("GET", "/"): "documentation",
    ("POST", "/v1/sessions"): "createSession",
    ("GET", "/v1/sessions"): "listSessions",
    ("GET", "/v1/sessions/{session_id}"): "getSession",
    ("PATCH", "/v1/sessions/{session_id}"): "updateSession",
    ("DELETE", "/v1/sessions/{session_id}"): "closeSession",
    ("POST", "/v1/sessions/{session_id}/fork"): "forkSession",
    ("GET", "/v1/sessions/{session_id}/export"): "exportSession",
    ("POST", "/v1/sessions/import"): "importSession",
    ("GET", "/v1/sessions/{session_id}/executions"): "listExecutions",
    ("GET", "/v1/executions"): "listTenantExecutions",
    ("GET", "/v1/approvals"): "listTenantApprovals",
    ("GET", "/v1/sessions/{session_id}/messages"): "listMessages",
    ("GET", _EXECUTION + "/approvals"): "listApprovals",
    ("POST", _EXECUTION + "/approvals/{approval_id}"): "answerApproval",
    ("GET", "/v1/profiles"): "listProfiles",
    ("POST", "/v1/profiles"): "setProfile",
    ("GET", "/v1/profiles/{name}"): "getProfile",
    ("DELETE", "/v1/profiles/{name}"): "deleteProfile",
    ("GET", "/v1/tools"): "listTools",
    ("POST", "/v1/tools/{name}/execute"): "executeTool",
    ("GET", "/v1/collections"): "listCollections",
    ("POST", "/v1/collections"): "installCollection",
    ("GET", "/v1/collections/{name}"): "getCollection",
    ("DELETE", "/v1/collections/{name}"): "deleteCollection",
    ("GET", "/v1/collections/installations"): "listInstallations",
    ("GET", "/v1/collections/installations/{installation_id}"): "getInstallation",
    ("DELETE", "/v1/collections/installations/{installation_id}"): "cancelInstallation",
    ("GET", "/v1/models"): "listModels",
    ("POST", "/v1/keys"): "createKey",
    ("GET", "/v1/keys"): "listKeys",
    ("GET", "/v1/keys/{key_id}"): "getKey",
    ("DELETE", "/v1/keys/{key_id}"): "revokeKey",
    ("POST", "/v1/keys/{key_id}/rotate"): "rotateKey",
    ("POST", "/v1/provider-keys"): "setProviderKey",
    ("GET", "/v1/provider-keys"): "listProviderKeys",
    ("GET", "/v1/provider-keys/{provider}"): "getProviderKey",
    ("DELETE", "/v1/provider-keys/{provider}"): "deleteProviderKey",
    ("GET", "/v1/web-policy"): "getWebPolicy",
    ("PUT", "/v1/web-policy"): "setWebPolicy",
    ("GET", "/v1/usage"): "getUsage",
    ("GET", "/v1/limits"): "getLimits",
    ("GET", "/v1/me"): "getMe",
    ("POST", "/v1/members"): "createMember",
    ("GET", "/v1/members"): "listMembers",
    ("GET", "/v1/members/{member_id}"): "getMember",
    ("PATCH", "/v1/members/{member_id}"): "updateMember",
    ("DELETE", "/v1/members/{member_id}"): "deleteMember",
    ("POST", "/v1/invitations"): "createInvitation",
    ("GET", "/v1/invitations"): "listInvitations",
    ("GET", "/v1/invitations/{invitation_id}"): "getInvitation",
    ("DELETE", "/v1/invitations/{invitation_id}"): "revokeInvitation",
    ("GET", "/auth/methods"): "listLoginMethods",
    ("GET", "/auth/login/{provider}"): "startLogin",
    ("GET", "/auth/callback/{provider}"): "finishLogin",
    ("GET", "/auth/session"): "getLogin",
    ("POST", "/auth/tenant"): "selectTenant",
    ("POST", "/auth/logout"): "logOut",
    ("POST", "/auth/invitations/accept"): "acceptInvitation",
    ("GET", "/auth/invitation"): "invitationPage",
    ("POST", "/auth/invitation"): "joinTenant",
    ("POST", "/auth/device/code"): "startDeviceLogin",
    ("POST", "/auth/device/token"): "finishDeviceLogin",
    ("GET", "/auth/device"): "devicePage",
    ("POST", "/auth/device/decide"): "decideDeviceLogin",
    ("POST", "/v1/roles"): "createRole",
    ("GET", "/v1/roles"): "listRoles",
    ("GET", "/v1/roles/{name}"): "getRole",
    ("PATCH", "/v1/roles/{name}"): "updateRole",
    ("DELETE", "/v1/roles/{name}"): "deleteRole",
    ("GET", "/v1/events"): "streamEvents",
    ("GET", "/v1/audit"): "listAuditEntries",
    ("GET", "/v1/audit/export"): "exportAuditEntries",
    ("POST", "/v1/tenants"): "createTenant",
    ("GET", "/v1/tenants"): "listTenants",
    ("GET", "/v1/tenants/{tenant_id}"): "getTenant",
    ("PATCH", "/v1/tenants/{tenant_id}"): "updateTenant",
    ("DELETE", "/v1/tenants/{tenant_id}"): "deleteTenant",
}

_LARGE_BODIES: Final = {"installCollection": "max_collection", "importSession": "max_import"}

# Of those that don't take JSON alone: a test holds it to what the OpenAPI document says.
_BODIES: Final[dict[str, tuple[str, ...]]] = {
    "installCollection": (body_types.JSON, *body_types.ZIPS),
    "startDeviceLogin": (body_types.FORM, body_types.JSON),
    "finishDeviceLogin": (body_types.FORM, body_types.JSON),
    "decideDeviceLogin": (body_types.FORM,),
    "joinTenant": (body_types.FORM,),
    "logOut": (),
    "cancelExecution": (),
}


def _taken(method: str, name: str) -> tuple[str, ...]:
    """The media types of an operation's body."""
    return _BODIES.get(name, (body_types.JSON,)) if method in ("POST", "PUT", "PATCH") else ()


def route_table(settings: Settings, hot: HotEndpoints | None, graphql: GraphqlDoor | None = None) -> RouteTable:
    """The table, with the hot endpoints bound; without them (None) it is for reading, not for serving."""
    rows = [
        Route(method, path, OPERATIONS[name], _LARGE_BODIES.get(name, "max_body"), _taken(method, name))
        for (method, path), name in _OF_THE_FRAMEWORK.items()
    ]
    if settings.metrics.enabled:
        rows.append(Route("GET", settings.metrics.endpoint, OPERATIONS["metrics"]))
    return RouteTable([*rows, *_hot(hot), *_graphql(graphql)])


def _hot(hot: HotEndpoints | None) -> list[Route]:
    execute = operation(
        operation_id="execute",
        summary="Run one prompt to its end, or stream it",
        description=(
            "Executes a prompt in the session and answers with its result. With `stream`, the answer is a stream of "
            "server-sent events, each an ExecutionEvent; with `background`, it is 202 at once. A client that leaves does not "
            "end the execution."
        ),
        answer=ExecutionResult,
        accepted=ExecutionStarted,
        body=Execute,
        streams="ExecutionEvent",
        statuses=(401, 403, 404, 409, 410, 413, 422, 429, 502, 503),
    )
    once = operation(
        operation_id="executeOnce",
        summary="Run one prompt in a session of its own, which is closed when it ends",
        description=(
            "Creates a session, executes the prompt in it and closes it, as three requests would: for runs that nothing "
            "follows. Its answer is that of `execute`, streamed or not; `Location` says where the execution is."
        ),
        answer=ExecutionResult,
        accepted=ExecutionStarted,
        body=ExecuteOnce,
        streams="ExecutionEvent",
        statuses=(401, 403, 404, 409, 413, 422, 429, 502, 503),
    )
    read = (401, 403, 404, 429)
    view = operation(
        operation_id="getExecution",
        summary="One execution",
        description="How an execution goes, or how it ended.",
        answer=ExecutionView,
        statuses=read,
    )
    events = operation(
        operation_id="streamExecution",
        summary="The events of an execution, from the start or after Last-Event-ID",
        description=(
            "Streams the events of an execution, each an ExecutionEvent: those that were recorded, then those that are made. "
            "The header `Last-Event-ID` names the event to go on after."
        ),
        answer=None,
        streams="ExecutionEvent",
        statuses=(*read, 422),
    )
    events["responses"]["204"] = {"description": "It has ended, and nothing comes after Last-Event-ID"}
    cancel = operation(
        operation_id="cancelExecution",
        summary="End a running execution",
        description="Ends an execution, and says how it ended. One that has ended stays as it is.",
        answer=ExecutionCancelled,
        statuses=read,
    )
    bound = {
        ("POST", "/v1/sessions/{session_id}/execute"): (execute, hot.execute if hot else None),
        ("POST", "/v1/executions"): (once, hot.execute_once if hot else None),
        ("GET", _EXECUTION): (view, hot.execution if hot else None),
        ("GET", _EXECUTION + "/events"): (events, hot.events if hot else None),
        ("POST", _EXECUTION + "/cancel"): (cancel, hot.cancel if hot else None),
    }
    return _plain(bound, parameters=frozenset())


def _graphql(door: GraphqlDoor | None) -> list[Route]:
    """One path for all documents; opened by a browser, it is a page, which anybody may see."""
    bound = {
        ("POST", "/graphql"): (graphql_schemas.POST, door.post if door else None),
        ("GET", "/graphql"): (graphql_schemas.GET, door.get if door else None),
    }
    return _plain(bound)


def _plain(
    bound: Mapping[tuple[str, str], tuple[dict[str, Any], Handler | None]], parameters: frozenset[str] | None = None
) -> list[Route]:
    """Rows of handlers that the framework knows nothing of."""
    return [
        Route(
            method,
            path,
            OPERATIONS[docs["operationId"]],
            takes=_taken(method, docs["operationId"]),
            handler=handler,
            docs=docs,
            parameters=parameters,
        )
        for (method, path), (docs, handler) in bound.items()
    ]
