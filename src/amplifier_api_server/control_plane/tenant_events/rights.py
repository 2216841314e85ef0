"""Which events a reader is told: those of what it may read by the rest of the API.

Pure. Invariant: `events:read` lets somebody follow, and shows nothing that another permission keeps from them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.tenant_events.recording import EventType
from amplifier_api_server.tenants.errors import Forbidden

_OF_SUBJECTS: Final = {  # what an event's name begins with -> what shows the same
    "session": "sessions:read",
    "execution": "sessions:read",
    "approval": "sessions:read",
    "collection": "collections:read",
    "profile": "profiles:read",
    "key": "keys:read",
    "member": "members:read",
    "tenant": "limits:read",
}
# Looked up here, at the start: an event of a new subject without a permission is no event that everybody reads.
PERMISSIONS: Final[Mapping[EventType, str]] = MappingProxyType(
    {kind: _OF_SUBJECTS[kind.value.partition(".")[0]] for kind in EventType}
)


def readable(principal: Principal, wanted: Collection[str] | None) -> frozenset[str]:
    """Those types among `wanted` (all, for None) that the caller may read.

    Raises Forbidden for one that was asked for by name: a reader would wait for what never comes.
    """
    if wanted:
        for kind in sorted(EventType(one) for one in wanted):
            if not principal.may(PERMISSIONS[kind]):
                raise Forbidden(
                    f"this caller's role ({principal.role}) does not have {PERMISSIONS[kind]}, which {kind.value} needs",
                    permission=PERMISSIONS[kind],
                )
        return frozenset(EventType(one).value for one in wanted)
    return frozenset(kind.value for kind in EventType if principal.may(PERMISSIONS[kind]))
