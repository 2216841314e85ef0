"""Invitations: made, listed, revoked, and taken once by whom they are for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.control_plane.accounts import service as accounts
from amplifier_api_server.control_plane.invitations import service
from amplifier_api_server.control_plane.members import service as members_service
from amplifier_api_server.control_plane.roles.service import grants_of
from amplifier_api_server.control_plane.settings import Auth
from amplifier_api_server.tenants.errors import Conflict, DomainError, NotFound
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import Invitation
from amplifier_api_server.tenants.repository.pages import Page
from tests.control_plane.accounts.doors import Doors, opened
from tests.control_plane.members.people import audit, events, holding, key, made, person, role
from tests.control_plane.members.people import service as new_service
from tests.tenants.embedded import WITH_A_LOGIN, embedded_in

EMAIL = "ada@example.com"


async def invite(doors: Doors, **body: Any) -> Any:
    return await made(await doors.admin.post("/v1/invitations", json={"email": EMAIL, "role": "developer", **body}))


async def refusal(doors: Doors, who: Any, token: str) -> str:
    with pytest.raises(DomainError) as refused:
        await service.accept(doors.embedded, who, token)
    return refused.value.stable_code


async def test_who_takes_an_invitation_is_a_member_as_it_says(doors: Doors):
    sent = await invite(doors)
    ada = await person(doors.embedded)
    member = await service.accept(doors.embedded, ada, sent["token"])
    shown = (await doors.admin.get(f"/v1/members/{member.id}")).json()
    assert (shown["kind"], shown["role"], shown["email"], shown["name"]) == ("person", "developer", EMAIL, "Ada")
    assert member.person_id == ada.id
    (listed,) = (await doors.admin.get("/v1/invitations")).json()["invitations"]
    assert (listed["status"], listed["member_id"]) == ("accepted", member.id)
    (entry,) = [one for one in await audit(doors.embedded) if one.action == "acceptInvitation"]
    assert (entry.actor, entry.target, entry.tenant_id) == (member.id, sent["id"], doors.first.tenant_id)
    added = [one.data for one in await events(doors.embedded) if one.type == "member.added"]
    assert added[-1] == {"member_id": member.id, "name": "Ada", "kind": "person", "role": "developer"}


async def test_its_token_is_shown_once_and_stored_nowhere(doors: Doors):
    sent = await invite(doors)
    assert sent["link"] == f"/auth/invitation?token={sent['token']}"
    listed = await doors.admin.get("/v1/invitations")
    assert sent["token"] not in listed.text
    assert "digest" not in listed.text
    assert {**listed.json()["invitations"][0], "token": sent["token"], "link": sent["link"]} == sent
    for path in doors.embedded.settings.server.data_dir.rglob("*"):
        assert not path.is_file() or sent["token"].encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "admin"}, "email"),
        ({"email": "nobody", "role": "admin"}, "email"),
        ({"email": "a@b@c", "role": "admin"}, "email"),
        ({"email": "a b@example.com", "role": "admin"}, "email"),
        ({"email": "a" * 65 + "@example.com", "role": "admin"}, "email"),
        ({"email": "a@" + "b" * 300, "role": "admin"}, "email"),
        ({"email": EMAIL}, "role"),
        ({"email": EMAIL, "role": "operator"}, "role"),
        ({"email": EMAIL, "role": "admin", "expires_in": 5}, "expires_in"),
        ({"email": EMAIL, "role": "admin", "expires_in": 10**9}, "expires_in"),
        ({"email": EMAIL, "role": "admin", "tenant_id": "ten_x"}, "tenant_id"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_field(doors: Doors, body: Any, field: str):
    answer = await doors.admin.post("/v1/invitations", json=body)
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["errors"]]


async def test_it_is_for_the_address_that_it_names(doors: Doors):
    sent = await invite(doors, email="Ada@Example.com")
    for email in ("eve@example.com", None, "ada@example.com.evil.org"):
        assert await refusal(doors, await person(doors.embedded, email), sent["token"]) == "invitation_other_email"
    await service.accept(doors.embedded, await person(doors.embedded, "aDA@example.COM"), sent["token"])


@pytest.mark.parametrize(
    ("invited", "other"),
    [
        ("mike@example.com", "mi\u212ae@example.com"),  # a Kelvin sign, which Unicode's folding makes a k
        ("strasse@example.com", "stra\u00dfe@example.com"),
        ("istanbul@example.com", "\u0130stanbul@example.com"),
        ("office@example.com", "o\ufb03ce@example.com"),
        ("\u00c4da@example.com", "\u00e4da@example.com"),  # letters beyond ASCII are themselves alone
    ],
)
async def test_addresses_that_unicode_takes_for_one_are_two(doors, invited: str, other: str):
    sent = await invite(doors, email=invited)
    assert await refusal(doors, await person(doors.embedded, other), sent["token"]) == "invitation_other_email"
    found = await person(doors.embedded, invited.replace("e", "E"))
    assert (await service.accept(doors.embedded, found, sent["token"])).role == "developer"


async def test_it_is_for_anybody_if_it_says_so(doors: Doors):
    sent = await invite(doors, any_email=True)
    member = await service.accept(doors.embedded, await person(doors.embedded, None, "Eve"), sent["token"])
    assert (member.name, member.email) == ("Eve", None)


async def test_it_is_taken_once(doors: Doors):
    sent = await invite(doors, any_email=True)
    await service.accept(doors.embedded, await person(doors.embedded), sent["token"])
    assert await refusal(doors, await person(doors.embedded), sent["token"]) == "invitation_used"


@pytest.mark.parametrize("people", [1, 2])
async def test_of_two_who_take_it_at_once_one_does(doors: Doors, people: int):
    sent = await invite(doors, any_email=True)
    them = [await person(doors.embedded) for _ in range(people)] * (2 // people)
    results = await asyncio.gather(
        *(service.accept(doors.embedded, one, sent["token"]) for one in them), return_exceptions=True
    )
    assert sorted(isinstance(one, Conflict) for one in results) == [False, True]
    page = await members_service.page(doors.embedded, TenantId(doors.first.tenant_id), Page(10), kind="person")
    assert len(page) == 1


async def test_nobody_joins_twice(doors: Doors):
    ada = await person(doors.embedded)
    tokens = [(await invite(doors))["token"] for _ in range(2)]
    results = await asyncio.gather(
        *(service.accept(doors.embedded, ada, token) for token in tokens), return_exceptions=True
    )
    (refused,) = [one for one in results if isinstance(one, DomainError)]
    assert refused.stable_code == "already_member"
    statuses = [one["status"] for one in (await doors.admin.get("/v1/invitations")).json()["invitations"]]
    assert sorted(statuses) == ["accepted", "pending"]  # who was refused has used none up


async def test_who_was_removed_can_be_invited_again(doors: Doors):
    ada = await person(doors.embedded)
    first = await service.accept(doors.embedded, ada, (await invite(doors))["token"])
    assert (await doors.admin.delete(f"/v1/members/{first.id}")).status_code == 204
    second = await service.accept(doors.embedded, ada, (await invite(doors, role="readonly"))["token"])
    assert (second.id != first.id, second.role) == (True, "readonly")


async def test_one_person_is_a_member_of_many_tenants(doors: Doors):
    ada = await person(doors.embedded)
    other = await made(await doors.operator.post("/v1/tenants", json={"name": "Other", "tier": "pro"}))
    body = {"email": EMAIL, "role": "admin"}
    theirs = await made(await doors.caller(other["admin_key"]).post("/v1/invitations", json=body))
    one = await service.accept(doors.embedded, ada, (await invite(doors))["token"])
    two = await service.accept(doors.embedded, ada, theirs["token"])
    assert (one.tenant_id, two.tenant_id) == (doors.first.tenant_id, other["id"])


async def test_an_expired_one_is_not_taken(doors: Doors):
    sent = await invite(doors, expires_in=60)
    doors.embedded.clock.advance(60)
    assert await refusal(doors, await person(doors.embedded), sent["token"]) == "invitation_expired"
    (listed,) = (await doors.admin.get("/v1/invitations")).json()["invitations"]
    assert listed["status"] == "expired"


async def test_a_revoked_one_is_not_taken(doors: Doors):
    sent = await invite(doors)
    assert (await doors.admin.delete(f"/v1/invitations/{sent['id']}")).status_code == 204
    assert await refusal(doors, await person(doors.embedded), sent["token"]) == "invitation_revoked"
    assert (await doors.admin.delete(f"/v1/invitations/{sent['id']}")).status_code == 404


async def test_it_gives_what_its_maker_still_has_to_give(doors: Doors):
    boss = await new_service(doors.admin, "admin")
    caller = doors.caller((await key(doors.admin, "admin", member_id=boss["id"]))["key"])
    sent = await made(await caller.post("/v1/invitations", json={"email": EMAIL, "role": "admin"}))
    ada, path = await person(doors.embedded), f"/v1/members/{boss['id']}"
    for change in ({"role": "developer"}, {"role": "admin", "status": "disabled"}):
        assert (await doors.admin.patch(path, json=change)).status_code == 200
        assert await refusal(doors, ada, sent["token"]) == "invitation_revoked"
    await doors.admin.patch(path, json={"status": "active"})
    await service.accept(doors.embedded, ada, sent["token"])


async def test_a_role_that_was_widened_is_given_as_it_is_now(doors: Doors):
    await role(doors.admin, "x", "usage:read")
    sent = await invite(doors, role="x")
    await doors.admin.patch("/v1/roles/x", json={"permissions": ["usage:read", "keys:read"]})
    member = await service.accept(doors.embedded, await person(doors.embedded), sent["token"])
    async with doors.embedded.database.read() as db:
        assert holding(await grants_of(db, TenantId(member.tenant_id), member.role)) >= {"keys:read", "usage:read"}


async def test_a_suspended_tenant_takes_nobody_in(doors: Doors):
    sent = await invite(doors)
    tenant_id, ada = TenantId(doors.first.tenant_id), await person(doors.embedded)
    await accounts.change(doors.embedded, tenant_id, "cli", status=TenantStatus.SUSPENDED)
    assert await refusal(doors, ada, sent["token"]) == "tenant_suspended"
    await accounts.delete(doors.embedded, tenant_id, "cli")
    assert await refusal(doors, ada, sent["token"]) == "invitation_not_found"


@pytest.mark.parametrize(
    "token", ["", "x", "amp_inv_", "amp_inv_" + "é" * 40, "amp_inv_" + "0" * 40, "amp_live_" + "0" * 38]
)
async def test_an_invented_token_is_none(doors: Doors, token: str):
    with pytest.raises(NotFound) as refused:
        await service.accept(doors.embedded, await person(doors.embedded), token)
    assert refused.value.stable_code == "invitation_not_found"


async def test_how_many_are_pending_is_bounded(doors: Doors, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(service, "MAX_PENDING", 2)
    first = await invite(doors)
    await invite(doors, expires_in=60)
    body = {"email": EMAIL, "role": "readonly"}
    full = await doors.admin.post("/v1/invitations", json=body)
    assert (full.status_code, full.json()["code"]) == (409, "too_many_invitations")
    doors.embedded.clock.advance(60)
    await invite(doors)  # one has expired
    await doors.admin.delete(f"/v1/invitations/{first['id']}")
    await invite(doors)


async def test_another_tenants_invitation_does_not_exist(doors: Doors):
    sent = await invite(doors)
    other = await made(await doors.operator.post("/v1/tenants", json={"name": "Other", "tier": "pro"}))
    stranger = doors.caller(other["admin_key"])
    assert (await stranger.get("/v1/invitations")).json()["invitations"] == []
    assert (await stranger.delete(f"/v1/invitations/{sent['id']}")).status_code == 404
    await service.accept(doors.embedded, await person(doors.embedded), sent["token"])


async def test_pages_go_on_where_they_ended(doors: Doors):
    ids = [(await invite(doors))["id"] for _ in range(5)]
    seen, cursor = [], None
    while True:
        query = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await doors.admin.get("/v1/invitations", params=query)).json()
        seen += [one["id"] for one in page["invitations"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(seen) == sorted(ids)


def test_a_new_one_does_not_show_its_token_in_a_log():
    row = Invitation(id="inv_1", tenant_id="t", email=EMAIL, role="admin", digest=b"", status="pending")
    assert "secret" not in repr(service.NewInvitation(row, "secret"))


async def test_a_link_is_an_address_where_the_server_knows_its_own(tmp_path: Path):
    login = WITH_A_LOGIN.login.model_copy(update={"public_url": "https://api.example.com"})
    auth = WITH_A_LOGIN.model_copy(update={"login": login})
    async with embedded_in(tmp_path, auth=auth) as found, opened(found) as doors:
        sent = await invite(doors)
        assert sent["link"] == f"https://api.example.com/auth/invitation?token={sent['token']}"


async def test_where_nobody_can_log_in_nobody_is_invited(tmp_path: Path):
    async with embedded_in(tmp_path, auth=Auth()) as found, opened(found) as doors:
        answer = await doors.admin.post("/v1/invitations", json={"email": EMAIL, "role": "developer"})
        assert (answer.status_code, answer.json()["code"]) == (409, "no_login_method")
        assert "auth.methods" in answer.json()["detail"]
        assert (await doors.admin.get("/v1/invitations")).json()["invitations"] == []
