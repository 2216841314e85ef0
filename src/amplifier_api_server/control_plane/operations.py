"""Everything that can be asked of the server: one table, which every door reads.

An operation's name is its OpenAPI operationId. A GraphQL field and a WebSocket message are bound to the same operation by
that name, and so to the same permission, the same limits and the same entry in the audit log. A test holds the doors
together: what one can do, the others can (`ONLY_REST` says what has no meaning elsewhere, and why).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Admit(Enum):
    """Who takes the request's place among the limits."""

    EDGE = "edge"
    SERVICE = "service"  # counted as the edge's are, and taken over with what else the work takes, all or nothing
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Operation:
    """One row."""

    name: str
    permission: str | None  # None: open to everybody, without authentication
    admit: Admit = Admit.EDGE
    also: str | None = None  # a second permission, of one that does two things
    takes_key: bool = False  # it creates or executes: an Idempotency-Key makes its repetition harmless
    grows: bool = False  # it leaves more on the disk than was there: refused where there is no room
    is_large: bool = False  # its body may be, and to read it is work: so it counts even where another limit refuses it
    may_free: bool = False  # and what it begins may as well delete something

    @property
    def permissions(self) -> tuple[str, ...]:
        """Each of these is asked for."""
        return tuple(one for one in (self.permission, self.also) if one is not None)


def _read(name: str, permission: str) -> Operation:
    return Operation(name, permission)


def _creates(name: str, permission: str, admit: Admit = Admit.EDGE) -> Operation:
    return Operation(name, permission, admit, takes_key=True, grows=True)


def _changes(name: str, permission: str) -> Operation:
    return Operation(name, permission, grows=True)


_ALL: Final = (
    # Sessions, and what runs in them.
    _creates("createSession", "sessions:create", Admit.SERVICE),
    _read("listSessions", "sessions:read"),
    _read("getSession", "sessions:read"),
    _changes("updateSession", "sessions:update"),
    Operation("closeSession", "sessions:delete"),
    _creates("forkSession", "sessions:create", Admit.SERVICE),
    _read("exportSession", "sessions:read"),
    Operation("importSession", "sessions:create", Admit.SERVICE, takes_key=True, grows=True, is_large=True),
    _read("listMessages", "sessions:read"),
    Operation("execute", "sessions:execute", Admit.SERVICE, takes_key=True, grows=True, may_free=True),
    Operation(
        "executeOnce",
        "sessions:execute",
        Admit.SERVICE,
        also="sessions:create",
        takes_key=True,
        grows=True,
    ),
    _read("listExecutions", "sessions:read"),
    _read("listTenantExecutions", "sessions:read"),
    _read("getExecution", "sessions:read"),
    _read("streamExecution", "sessions:read"),
    Operation("cancelExecution", "sessions:execute"),
    _read("listApprovals", "sessions:read"),
    _read("listTenantApprovals", "sessions:read"),
    Operation("answerApproval", "sessions:approve", takes_key=True),  # it lets an execution end
    # What sessions are made of.
    _read("listProfiles", "profiles:read"),
    _creates("setProfile", "profiles:write"),
    _read("getProfile", "profiles:read"),
    Operation("deleteProfile", "profiles:write"),
    _read("listTools", "tools:read"),
    _creates("executeTool", "tools:execute"),
    _read("listCollections", "collections:read"),
    _read("getCollection", "collections:read"),
    _creates("installCollection", "collections:install"),
    Operation("deleteCollection", "collections:remove"),
    _read("listInstallations", "collections:read"),
    _read("getInstallation", "collections:read"),
    Operation("cancelInstallation", "collections:install"),
    _read("listModels", "models:read"),
    # The tenant.
    _creates("createKey", "keys:create"),
    _read("listKeys", "keys:read"),
    _read("getKey", "keys:read"),
    Operation("revokeKey", "keys:delete"),
    _creates("rotateKey", "keys:create"),
    _creates("setProviderKey", "provider_keys:create"),
    _read("listProviderKeys", "provider_keys:read"),
    _read("getProviderKey", "provider_keys:read"),
    Operation("deleteProviderKey", "provider_keys:delete"),
    _read("getWebPolicy", "web:read"),
    _changes("setWebPolicy", "web:update"),
    _read("getUsage", "usage:read"),
    Operation("getLimits", "limits:read", Admit.NOBODY),  # never refused for the limits that it explains
    # Its people.
    Operation("getMe", "me:read", Admit.NOBODY),
    _creates("createMember", "members:create"),
    _read("listMembers", "members:read"),
    _read("getMember", "members:read"),
    _changes("updateMember", "members:update"),
    Operation("deleteMember", "members:delete"),
    _creates("createInvitation", "members:create"),
    _read("listInvitations", "members:read"),
    _read("getInvitation", "members:read"),
    Operation("revokeInvitation", "members:delete"),
    _creates("createRole", "roles:create"),
    _read("listRoles", "roles:read"),
    _read("getRole", "roles:read"),
    _changes("updateRole", "roles:update"),
    Operation("deleteRole", "roles:delete"),
    # What happened.
    _read("streamEvents", "events:read"),
    _read("listAuditEntries", "audit:read"),
    _read("exportAuditEntries", "audit:read"),
    # The operator's.
    _creates("createTenant", "tenants:create"),
    _read("listTenants", "tenants:read"),
    _read("getTenant", "tenants:read"),
    Operation("updateTenant", "tenants:update"),
    Operation("deleteTenant", "tenants:delete"),
    # The other doors: whoever is known may come in, and each thing that is asked there is an operation of its own.
    Operation("graphql", "me:read", Admit.NOBODY, takes_key=True),
    # Open to everybody.
    Operation("health", None),
    Operation("ready", None),
    Operation("metrics", None),
    Operation("openapi", None),
    Operation("asyncapi", None),
    Operation("documentation", None),
    Operation("graphiql", None),
    # Logging in: each checks the cookie, or the code, that it is about.
    Operation("listLoginMethods", None),
    Operation("startLogin", None),
    Operation("finishLogin", None),
    Operation("getLogin", None),
    Operation("logOut", None),
    Operation("selectTenant", None),
    Operation("acceptInvitation", None),
    Operation("invitationPage", None),
    Operation("joinTenant", None),
    Operation("startDeviceLogin", None),
    Operation("devicePage", None),
    Operation("decideDeviceLogin", None),
    Operation("finishDeviceLogin", None),
)

OPERATIONS: Final[Mapping[str, Operation]] = {one.name: one for one in _ALL}

# What other doors don't have, and why.
ONLY_REST: Final[Mapping[str, str]] = {
    "exportAuditEntries": "a file to be kept; the entries themselves are on every door",
    "graphql": "it is a door",
} | {one.name: "open to everybody, or about a browser's cookie" for one in _ALL if one.permission is None}
