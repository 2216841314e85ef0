"""A key is its member's: it ends with them, and holds no more than they do. Roles of a tenant's own are looked up with it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, event

from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.keys.service import NewKey
from amplifier_api_server.control_plane.settings import Auth
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Forbidden, Unauthenticated
from amplifier_api_server.tenants.ids import MemberId, TenantId, new_key_id, new_role_id
from amplifier_api_server.tenants.models import ApiKey, Member, Role, Tenant
from amplifier_api_server.tenants.repository import keys, members
from tests.tenants.embedded import PEPPER, Embedded


@pytest.fixture
async def tenant(embedded: Embedded) -> Tenant:
    return await embedded.tenant()


async def key_of(embedded: Embedded, member: Member | None, role: str) -> str:
    minted = api_keys.mint()
    row = ApiKey(
        id=new_key_id(),
        tenant_id=member.tenant_id if member else None,
        member_id=member.id if member else None,
        name="k",
        role=role,
        digest=embedded.authenticator.digest(minted.text),
        hint=minted.hint,
        limits={},
        created_at=embedded.clock.now(),
    )
    async with embedded.database.write() as db:
        if member is None:
            await keys.add_of_operator(db, row)
        else:
            await keys.add(db, TenantId(member.tenant_id), row)
    return NewKey(row, minted.text).text


async def enter(embedded: Embedded, key: str) -> Principal:
    return await embedded.authenticator.authenticate([(b"x-api-key", key.encode())])


async def change(embedded: Embedded, member: Member, **values: Any) -> None:
    async with embedded.database.write() as db:
        row = await members.find(db, TenantId(member.tenant_id), MemberId(member.id))
        for name, value in values.items():
            setattr(row, name, value)
    embedded.authenticator.forget_member(TenantId(member.tenant_id), MemberId(member.id))


async def own_role(embedded: Embedded, tenant: Tenant, name: str, *permissions: str) -> Role:
    now = embedded.clock.now()
    role = Role(
        id=new_role_id(),
        tenant_id=tenant.id,
        name=name,
        permissions=list(permissions),
        created_at=now,
        updated_at=now,
        created_by="test",
    )
    async with embedded.database.write() as db:
        db.add(role)
    return role


async def test_a_key_of_a_disabled_member_is_refused_and_says_so(embedded: Embedded, tenant: Tenant):
    member = await embedded.member(tenant)
    key = await key_of(embedded, member, "developer")
    await enter(embedded, key)
    await change(embedded, member, status="disabled")
    with pytest.raises(Forbidden) as refused:
        await enter(embedded, key)
    assert refused.value.stable_code == "member_disabled"
    await change(embedded, member, status="active")
    await enter(embedded, key)


async def test_a_key_of_a_removed_member_is_unknown(embedded: Embedded, tenant: Tenant):
    member = await embedded.member(tenant)
    key = await key_of(embedded, member, "developer")
    await enter(embedded, key)
    await change(embedded, member, status="removed")
    with pytest.raises(Unauthenticated):
        await enter(embedded, key)


async def test_a_key_with_a_role_of_the_tenant_s_own_holds_that(embedded: Embedded, tenant: Tenant):
    await own_role(embedded, tenant, "auditor", "audit:read", "usage:*", "tenants:*", "future:thing")
    other = await embedded.tenant()
    await own_role(embedded, other, "auditor", "*")
    key = await key_of(embedded, await embedded.member(tenant), "auditor")
    queries = 0

    def counted(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        nonlocal queries
        queries += statement.startswith("SELECT")

    event.listen(embedded.database._read_engine.sync_engine, "before_cursor_execute", counted)
    principal = await enter(embedded, key)
    assert (principal.role, principal.grants) == ("auditor", frozenset({"audit:read", "usage:*"}))
    assert queries == 1


async def test_a_role_that_is_gone_holds_nothing(embedded: Embedded, tenant: Tenant):
    role = await own_role(embedded, tenant, "auditor", "audit:read")
    key = await key_of(embedded, await embedded.member(tenant), "auditor")
    assert (await enter(embedded, key)).may("audit:read")
    async with embedded.database.write() as db:
        await db.execute(delete(Role).where(Role.id == role.id))  # type: ignore[arg-type]
    embedded.authenticator.forget_tenant(TenantId(tenant.id))
    principal = await enter(embedded, key)
    assert not principal.may("audit:read")
    assert principal.may("me:read")


async def test_a_key_holds_no_more_than_its_member(embedded: Embedded, tenant: Tenant):
    member = await embedded.member(tenant, role="admin")
    key = await key_of(embedded, member, "admin")
    assert (await enter(embedded, key)).may("keys:create")
    await change(embedded, member, role="readonly")
    principal = await enter(embedded, key)
    assert (principal.role, principal.may("keys:create"), principal.may("sessions:read")) == ("readonly", False, True)
    assert not principal.may("sessions:create")


async def test_where_keys_are_not_taken_only_the_operator_s_are(embedded: Embedded, tenant: Tenant):
    key, operators = (
        await key_of(embedded, await embedded.member(tenant), "admin"),
        await key_of(embedded, None, "operator"),
    )
    settings = embedded.settings.model_copy(update={"auth": Auth(methods=())})
    authenticator = Authenticator(embedded.database, settings, PEPPER, embedded.clock)
    with pytest.raises(Unauthenticated, match="no API keys"):
        await authenticator.authenticate([(b"authorization", b"Bearer " + key.encode())])
    with pytest.raises(Unauthenticated, match="no API key was sent"):
        await authenticator.authenticate([(b"x-api-key", operators.encode())])
    assert (await authenticator.authenticate([(b"authorization", b"Bearer " + operators.encode())])).is_operator
    await authenticator.close()


async def test_keys_can_stand_in_several_headers(embedded: Embedded, tenant: Tenant):
    key = await key_of(embedded, await embedded.member(tenant), "admin")
    auth = Auth.model_validate({"methods": [{"type": "api_key"}, {"type": "api_key", "header": "X-Old-Key"}]})
    authenticator = Authenticator(
        embedded.database, embedded.settings.model_copy(update={"auth": auth}), PEPPER, embedded.clock
    )
    for name in (b"x-api-key", b"x-old-key"):
        assert (await authenticator.authenticate([(name, key.encode())])).tenant_id == tenant.id
    with pytest.raises(Unauthenticated, match="two different"):
        await authenticator.authenticate([(b"x-api-key", key.encode()), (b"x-old-key", b"amp_live_other")])
    await authenticator.close()
