"""API keys of operators: made and revoked where the server runs, never over the API."""

from __future__ import annotations

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.keys.service import NewKey, Wish
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.ids import KeyId, TenantId, new_key_id
from amplifier_api_server.tenants.models import ApiKey
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository import keys
from amplifier_api_server.tenants.repository.pages import Page

_NO_TENANT = TenantId("")  # whose log it is in: the operator's alone


async def create(services: Management, wish: Wish, by: By) -> NewKey:
    """A new operator key; an operator is not counted, so that it can't have limits. Commits. Raises Invalid."""
    now = services.clock.now()
    if wish.limits:
        raise Invalid("an operator's key has no limits")
    if wish.expires_at is not None and wish.expires_at <= now:
        raise Invalid("expires_at should be in the future")
    minted = api_keys.mint()
    row = ApiKey(
        id=new_key_id(),
        name=wish.name,
        role=Role.OPERATOR.value,
        digest=services.authenticator.digest(minted.text),
        hint=minted.hint,
        limits={},
        created_at=now,
        created_by=by.credential_id if isinstance(by, Principal) else by,
        expires_at=wish.expires_at,
    )
    async with services.database.write() as db:
        await keys.add_of_operator(db, row)
        changes = differences({}, {"name": wish.name, "role": row.role})
        await record(db, services.clock, by, "createKey", tenant_id=_NO_TENANT, target=row.id, changes=changes)
    return NewKey(row, minted.text)


async def page(services: Management, page: Page) -> list[ApiKey]:
    """Operators' keys that are not revoked."""
    async with services.database.read() as db:
        return await keys.page_of_operators(db, page)


async def revoke(services: Management, key_id: KeyId, by: By) -> bool:
    """End an operator's key; whether there was one. Commits."""
    async with services.database.write() as db:
        is_there = await keys.revoke_of_operator(db, key_id, services.clock.now())
        if is_there:
            await record(db, services.clock, by, "revokeKey", tenant_id=_NO_TENANT, target=key_id)
    if is_there:
        await services.on_key_revoked(key_id)
    return is_there
