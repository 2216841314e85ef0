"""Tokens of an identity provider: whom they make, and what of that changes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.tenants.errors import Forbidden
from amplifier_api_server.tenants.ids import MemberId, TenantId, new_role_id
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import AuditEntry, Identity, Member, Person, Role, TenantEvent
from amplifier_api_server.tenants.repository import members
from tests.control_plane.auth.conftest import House, believing
from tests.control_plane.auth.issuer import Issuer
from tests.tenants.embedded import PEPPER, embedded_in


async def change_member(house: House, member_id: MemberId, **values: Any) -> None:
    async with house.embedded.database.write() as db:
        row = await members.find(db, TenantId(house.tenant.id), member_id)
        for name, value in values.items():
            setattr(row, name, value)
    house.embedded.authenticator.forget_tenant(TenantId(house.tenant.id))


async def rows(house: House, table: Any) -> list[Any]:
    async with house.embedded.database.read() as db:
        return list((await db.execute(select(table))).scalars())


async def own_role(house: House, name: str, *permissions: str) -> None:
    now = house.embedded.clock.now()
    row = Role(
        id=new_role_id(), tenant_id=house.tenant.id, name=name, permissions=list(permissions), created_at=now,
        updated_at=now, created_by="test",
    )  # fmt: skip
    async with house.embedded.database.write() as db:
        db.add(row)


# Whom a token makes.


async def test_a_token_says_who_is_calling(house: House):
    principal = await house.enter(house.token(name="Ada"))
    assert (principal.tenant_id, principal.role, principal.method) == (house.tenant.id, "developer", "bearer")
    assert principal.may("sessions:create")
    assert not principal.may("keys:create")
    assert principal.credential_id.startswith("jwt_")
    assert principal.expires_at == house.embedded.clock.now().timestamp() + 630  # with the leeway
    assert principal.limits.requests_per_minute == 100  # the tier's


async def test_somebody_becomes_a_member_at_their_first_token_and_stays_the_same(house: House):
    first = await house.enter(house.token(name="Ada", email="ada@example.com", email_verified=True))
    again = await house.enter(house.token(name="Ada", jti="another"))
    assert (again.member_id, again.person_id) == (first.member_id, first.person_id)
    [member], [person], [identity] = await rows(house, Member), await rows(house, Person), await rows(house, Identity)
    assert (member.id, member.name, member.role, member.kind) == (first.member_id, "Ada", "developer", "person")
    assert (member.email, member.person_id) == ("ada@example.com", person.id)
    assert (identity.provider, identity.subject, identity.person_id) == (house.issuer.url, "user-1", person.id)
    [entry], [told] = await rows(house, AuditEntry), await rows(house, TenantEvent)
    assert (entry.action, entry.target, entry.actor) == ("createMember", member.id, "system")
    assert (told.type, told.data["member_id"]) == ("member.added", member.id)


async def test_many_first_tokens_at_once_make_one_member(house: House):
    everybody = await asyncio.gather(*(house.enter(house.token(jti=str(n))) for n in range(20)))
    assert len({one.member_id for one in everybody}) == 1
    assert len(await rows(house, Member)) == 1


async def test_one_person_is_another_member_in_another_tenant(house: House):
    other = await house.embedded.tenant()
    here, there = await house.enter(house.token()), await house.enter(house.token(tenant_id=other.id))
    assert here.person_id == there.person_id
    assert here.member_id != there.member_id
    assert (here.tenant_id, there.tenant_id) == (house.tenant.id, other.id)


async def test_an_address_that_was_not_verified_is_not_kept(house: House):
    await house.enter(house.token(email="boss@example.com"))
    [member] = await rows(house, Member)
    assert member.email is None


async def test_a_client_with_a_token_for_itself_is_a_service(house: House):
    await house.enter(house.token(sub="ci", client_id="ci"))
    [member] = await rows(house, Member)
    assert member.kind == "service"


async def test_several_roles_hold_what_they_hold_together(house: House):
    await own_role(house, "auditor", "audit:read", "usage:read")
    principal = await house.enter(house.token(roles=["readonly", "auditor", "no-such-role"]))
    assert principal.may("audit:read")
    assert principal.may("sessions:read")
    assert not principal.may("sessions:execute")
    assert set(principal.role.split("+")) == {"readonly", "auditor"}


async def test_the_issuer_s_new_roles_hold_with_the_next_token_and_are_listed(house: House):
    first = await house.enter(house.token(roles=["admin"]))
    second = await house.enter(house.token(roles=["readonly"]))
    assert first.may("keys:create")
    assert not second.may("keys:create")
    [member] = await rows(house, Member)
    assert (member.id, member.role) == (second.member_id, "readonly")


async def test_no_claim_leads_to_the_operator(house: House):
    with pytest.raises(Forbidden) as refused:
        await house.enter(house.token(roles=["operator"]))
    assert refused.value.stable_code == "no_role"
    principal = await house.enter(house.token(roles=["operator", "readonly"]))
    assert (principal.is_operator, principal.role) == (False, "readonly")
    with pytest.raises(Forbidden):
        await house.enter(house.token(tenant_id=""))


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"tenant_id": None}, "not_a_member"),
        ({"tenant_id": "ten_nobody"}, "not_a_member"),
        ({"tenant_id": ["ten_a", "ten_b"]}, "not_a_member"),
        ({"tenant_id": {"a": 1}}, "not_a_member"),
        ({"tenant_id": "a\x00b"}, "not_a_member"),
        ({"roles": []}, "no_role"),
        ({"roles": None}, "no_role"),
        ({"roles": ["nothing-here"]}, "no_role"),
        ({"roles": 7}, "no_role"),
    ],
)
async def test_a_genuine_token_that_leads_nowhere_is_forbidden(house: House, claims: dict[str, Any], code: str):
    with pytest.raises(Forbidden) as refused:
        await house.enter(house.token(**claims))
    assert refused.value.stable_code == code
    assert await rows(house, Member) == []


async def test_who_is_no_member_is_refused_where_nobody_is_taken_in(tmp_path: Path, issuer: Issuer):
    async with embedded_in(tmp_path, auth=believing(issuer, provision=False)) as made:
        house = House(made, issuer, await made.tenant())
        with pytest.raises(Forbidden) as refused:
            await house.enter(house.token())
        assert refused.value.stable_code == "not_a_member"
        assert await rows(house, Person) == []


async def test_a_disabled_member_is_refused_until_they_are_enabled(house: House):
    token = house.token()
    principal = await house.enter(token)
    await change_member(house, principal.member_id, status=MemberStatus.DISABLED.value)
    with pytest.raises(Forbidden) as refused:
        await house.enter(token)
    assert refused.value.stable_code == "member_disabled"
    await change_member(house, principal.member_id, status=MemberStatus.ACTIVE.value)
    assert (await house.enter(token)).member_id == principal.member_id


async def test_a_removed_member_is_not_taken_in_again(house: House):
    token = house.token()
    principal = await house.enter(token)
    await change_member(house, principal.member_id, status=MemberStatus.REMOVED.value)
    for one in (token, house.token(jti="new")):
        with pytest.raises(Forbidden) as refused:
            await house.enter(one)
        assert refused.value.stable_code == "not_a_member"
    assert len(await rows(house, Member)) == 1
    back = await house.embedded.member(house.tenant, person_id=principal.person_id, role="readonly")
    house.embedded.authenticator.forget_tenant(TenantId(house.tenant.id))
    assert (await house.enter(token)).member_id == back.id


async def test_a_change_elsewhere_is_noticed_within_the_cache_s_time(house: House):
    token = house.token()
    elsewhere = Authenticator(house.embedded.database, house.embedded.settings, PEPPER, house.embedded.clock)
    headers = [(b"authorization", b"Bearer " + token.encode())]
    principal = await elsewhere.authenticate(headers)
    await change_member(house, principal.member_id, status=MemberStatus.DISABLED.value)
    await elsewhere.authenticate(headers)
    house.embedded.clock.advance(1.0)
    with pytest.raises(Forbidden):
        await elsewhere.authenticate(headers)
    await elsewhere.close()


async def test_a_suspended_tenant_s_tokens_are_told_so(house: House):
    token = house.token()
    await house.enter(token)
    await accounts.change(house.embedded, TenantId(house.tenant.id), "cli", status=TenantStatus.SUSPENDED)
    with pytest.raises(Forbidden) as refused:
        await house.enter(token)
    assert refused.value.stable_code == "tenant_suspended"
    await accounts.delete(house.embedded, TenantId(house.tenant.id), "cli")
    with pytest.raises(Forbidden) as refused:
        await house.enter(token)
    assert refused.value.stable_code == "not_a_member"


async def test_roles_can_be_kept_here_instead(tmp_path: Path, issuer: Issuer):
    claims = {"roles": None, "default_role": "readonly"}
    async with embedded_in(tmp_path, auth=believing(issuer, claims=claims)) as made:
        house = House(made, issuer, await made.tenant())
        first = await house.enter(house.token(roles=["admin"]))
        assert first.role == "readonly"
        await change_member(house, first.member_id, role="developer")
        assert (await house.enter(house.token(roles=["admin"]))).role == "developer"
