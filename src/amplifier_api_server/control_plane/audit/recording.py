"""Writing the audit log. Every management service calls `record` in the transaction of what it changes.

Invariant: a change that was committed is in the log, and what was rolled back is not. A secret is never in `changes`: the
field's name with [None, None] says that it was set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import AuditEntry
from amplifier_api_server.tenants.repository import audit

# Who changes something: a caller, or what acts where the server runs. Not any text: what a caller sent is no actor.
By = Principal | Literal["cli", "system", "bootstrap"]
Changes = Mapping[str, tuple[Any, Any]]  # field -> (before, after), JSON values


async def record(
    db: AsyncSession,
    clock: Clock,
    by: By,
    action: str,
    *,
    tenant_id: TenantId | None = None,
    target: str = "",
    changes: Changes | None = None,
) -> None:
    """Add one entry to the transaction that the caller commits.

    `by` is who is calling, or a word for what acts by itself. `action` is an operation's name. `tenant_id`
    says whose log it is in where that is not the caller's own: an operator's change of a tenant is in the tenant's log.
    """
    origin = current_origin()
    whose = tenant_id if tenant_id is not None else (by.tenant_id if isinstance(by, Principal) else TenantId(""))
    row = AuditEntry(
        tenant_id=whose,
        at=clock.now(),
        actor=by.member_id if isinstance(by, Principal) else by,
        credential_id=by.credential_id if isinstance(by, Principal) else "",
        door=origin.door,
        address=origin.address,
        user_agent=origin.user_agent,
        request_id=origin.record_id,
        action=action,
        target=target,
        changes={name: list(pair) for name, pair in (changes or {}).items()},
    )
    await audit.add(db, whose, row)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields of `after` whose values are others than before."""
    return {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}
