"""A tenant with callers of several roles, and people who have logged in."""

from __future__ import annotations

from typing import Any

import httpx2
from sqlalchemy import select

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.tenants.ids import new_identity_id, new_person_id
from amplifier_api_server.tenants.models import AuditEntry, Identity, Person, TenantEvent
from amplifier_api_server.tenants.permissions import RESOURCES, allows
from tests.control_plane.accounts.doors import Doors
from tests.tenants.embedded import Embedded

PROVIDER = "https://login.example.com"
PERMISSIONS = sorted(f"{resource}:{action}" for resource, actions in RESOURCES.items() for action in actions)


def holding(grants: Any) -> set[str]:
    """Every permission there is that these hold."""
    return {one for one in PERMISSIONS if allows(grants, one)}


async def made(answer: Any) -> Any:
    """The body of a 201."""
    assert answer.status_code == 201, answer.text
    return answer.json()


async def role(caller: httpx2.AsyncClient, name: str, *permissions: str) -> Any:
    return await made(await caller.post("/v1/roles", json={"name": name, "permissions": permissions}))


async def service(caller: httpx2.AsyncClient, role: str, name: str = "bot") -> Any:
    return await made(await caller.post("/v1/members", json={"name": name, "role": role}))


async def key(caller: httpx2.AsyncClient, role: str, **body: Any) -> Any:
    return await made(await caller.post("/v1/keys", json={"name": "k", "role": role, **body}))


async def with_role(doors: Doors, name: str, *permissions: str) -> httpx2.AsyncClient:
    """A caller with a role of their own."""
    await role(doors.admin, name, *permissions)
    return doors.caller((await key(doors.admin, name))["key"])


async def person(embedded: Embedded, email: str | None = "ada@example.com", name: str = "Ada") -> Person:
    """Somebody who has logged in by PROVIDER, which the server may not have any more."""
    row = Person(id=new_person_id(), name=name, email=email, created_at=embedded.clock.now())
    identity = Identity(
        id=new_identity_id(),
        person_id=row.id,
        provider=PROVIDER,
        subject=row.id,
        created_at=embedded.clock.now(),
    )
    async with embedded.database.write() as db:
        db.add(row)
        await db.flush()
        db.add(identity)
    return row


async def principal_of(doors: Doors, text: str) -> Principal:
    return await doors.embedded.authenticator.principal_of(text)


async def audit(embedded: Embedded) -> list[AuditEntry]:
    """But for the first keys."""
    return [entry for entry in await _rows(embedded, AuditEntry) if entry.actor != "bootstrap"]


async def events(embedded: Embedded) -> list[TenantEvent]:
    return await _rows(embedded, TenantEvent)


async def _rows(embedded: Embedded, kind: Any) -> list[Any]:
    async with embedded.database.read() as db:
        return list((await db.execute(select(kind).order_by(kind.id))).scalars())
