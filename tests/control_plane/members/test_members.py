"""Members: services that are made, and what can be done to anybody."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.control_plane.members import service as members_service
from amplifier_api_server.control_plane.settings import Auth
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import MemberId, TenantId
from amplifier_api_server.tenants.models import Member
from amplifier_api_server.tenants.repository import tenants
from amplifier_api_server.tenants.repository.pages import Page
from tests.control_plane.accounts.doors import Doors, opened
from tests.control_plane.members.people import PROVIDER, key, made, person, principal_of, role, service
from tests.tenants.embedded import embedded_in

EMAIL = "ada@example.com"


async def test_a_service_has_keys_and_no_login(doors: Doors):
    bot = await service(doors.admin, "developer", "nightly")
    assert (bot["kind"], bot["status"], bot["email"], bot["name"]) == ("service", "active", None, "nightly")
    made_key = await key(doors.admin, "developer", member_id=bot["id"])
    assert made_key["member_id"] == bot["id"]
    assert (await doors.admin.get(f"/v1/members/{bot['id']}")).json() == bot
    assert (await principal_of(doors, made_key["key"])).member_id == bot["id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"role": "admin"}, "name"),
        ({"name": "x"}, "role"),
        ({"name": "x", "role": "operator"}, "role"),
        ({"name": "x", "role": "nobody"}, "role"),
        ({"name": "x", "role": "admin", "kind": "person"}, "kind"),
        ({"name": "x", "role": "admin", "limits": {"requests_per_minute": 5000}}, "limits.requests_per_minute"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_field(doors: Doors, body: Any, field: str):
    answer = await doors.admin.post("/v1/members", json=body)
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["errors"]]


async def test_pages_and_filters(doors: Doors):
    bots = [await service(doors.admin, "readonly", f"b{number}") for number in range(4)]
    await doors.admin.patch(f"/v1/members/{bots[0]['id']}", json={"status": "disabled"})
    await doors.admin.delete(f"/v1/members/{bots[1]['id']}")
    seen, cursor = [], None
    while True:
        query = {"limit": 2, "kind": "service"} | ({"cursor": cursor} if cursor else {})
        page = (await doors.admin.get("/v1/members", params=query)).json()
        seen += [one["name"] for one in page["members"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert sorted(seen) == ["admin", "b0", "b2", "b3"]

    async def names(**query: Any) -> list[str]:
        answer = (await doors.admin.get("/v1/members", params=query)).json()
        return sorted(one["name"] for one in answer["members"])

    assert await names(status="disabled") == ["b0"]
    assert await names(status=["disabled", "removed"]) == ["b0", "b1"]
    assert await names(kind="person") == []
    assert (await doors.admin.get("/v1/members", params={"status": "away"})).status_code == 422


async def test_a_disabled_members_keys_are_refused_until_it_is_enabled(doors: Doors):
    bot = await service(doors.admin, "developer")
    caller = doors.caller((await key(doors.admin, "developer", member_id=bot["id"]))["key"])
    assert (await caller.get("/v1/limits")).status_code == 200
    path = f"/v1/members/{bot['id']}"
    assert (await doors.admin.patch(path, json={"status": "disabled"})).json()["status"] == "disabled"
    refused = await caller.get("/v1/limits")
    assert (refused.status_code, refused.json()["code"]) == (403, "member_disabled")
    assert doors.embedded.ended == [bot["id"]]  # what it had open
    late = await doors.admin.post("/v1/keys", json={"name": "k", "role": "readonly", "member_id": bot["id"]})
    assert (late.status_code, late.json()["errors"][0]["field"]) == (422, "member_id")
    assert (await doors.admin.patch(path, json={"status": "active"})).status_code == 200
    assert (await caller.get("/v1/limits")).status_code == 200


async def test_a_smaller_role_holds_at_once_for_older_keys_too(doors: Doors):
    bot = await service(doors.admin, "admin")
    caller = doors.caller((await key(doors.admin, "admin", member_id=bot["id"]))["key"])
    assert (await caller.get("/v1/keys")).status_code == 200
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"role": "developer"})
    assert (await caller.get("/v1/keys")).status_code == 403
    assert doors.embedded.ended == [bot["id"]]
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"role": "admin"})
    assert (await caller.get("/v1/keys")).status_code == 200
    assert doors.embedded.ended == [bot["id"]]  # who may do more keeps what it has open


async def test_a_key_holds_no_more_than_its_member(doors: Doors):
    bot = await service(doors.admin, "readonly")
    wide = await doors.admin.post("/v1/keys", json={"name": "k", "role": "developer", "member_id": bot["id"]})
    assert (wide.status_code, wide.json()["errors"][0]["field"]) == (422, "role")
    await key(doors.admin, "readonly", member_id=bot["id"])


async def test_limits_of_a_member_lower_what_its_tenant_has(doors: Doors):
    bot = await service(doors.admin, "developer")
    caller = doors.caller((await key(doors.admin, "developer", member_id=bot["id"]))["key"])
    changed = await doors.admin.patch(f"/v1/members/{bot['id']}", json={"limits": {"requests_per_minute": 3}})
    assert changed.json()["limits"] == {"requests_per_minute": 3}
    explained = {one["name"]: one["limit"] for one in (await caller.get("/v1/limits")).json()["limits"]}
    assert explained["requests_per_minute"] == 3
    over = await doors.admin.patch(f"/v1/members/{bot['id']}", json={"limits": {"requests_per_minute": 5000}})
    assert over.status_code == 422


async def test_a_removed_member_is_out_for_good(doors: Doors):
    bot = await service(doors.admin, "developer", "old")
    keys = [await key(doors.admin, "developer", member_id=bot["id"]) for _ in range(2)]
    path = f"/v1/members/{bot['id']}"
    assert (await doors.admin.delete(path)).status_code == 204
    for one in keys:
        assert (await doors.caller(one["key"]).get("/v1/limits")).status_code == 401
        assert (await doors.admin.get(f"/v1/keys/{one['id']}")).status_code == 404
    assert sorted(doors.embedded.revoked) == sorted(one["id"] for one in keys)
    assert doors.embedded.ended == [bot["id"]]
    assert (await doors.admin.get(path)).json()["status"] == "removed"  # whose sessions and usage can still be told
    for answer in (
        await doors.admin.delete(path),
        await doors.admin.patch(path, json={"status": "active"}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "member_not_found")
    again = await doors.admin.post("/v1/keys", json={"name": "k", "role": "readonly", "member_id": bot["id"]})
    assert again.status_code == 422


async def test_invitations_of_a_removed_member_are_void(doors: Doors):
    boss = await service(doors.admin, "admin")
    caller = doors.caller((await key(doors.admin, "admin", member_id=boss["id"]))["key"])
    await made(await caller.post("/v1/invitations", json={"email": "a@example.com", "role": "admin"}))
    await doors.admin.delete(f"/v1/members/{boss['id']}")
    listed = (await doors.admin.get("/v1/invitations")).json()["invitations"]
    assert [one["status"] for one in listed] == ["revoked"]


@pytest.mark.parametrize("how", ["remove", "disable", "demote"])
async def test_the_last_admin_with_a_way_in_stays(doors: Doors, how: str):
    me = (await principal_of(doors, doors.first.tenant_key)).member_id
    keyless = await service(doors.admin, "admin")  # an admin, but with no way in

    async def end(member_id: str) -> Any:
        path = f"/v1/members/{member_id}"
        if how == "remove":
            return await doors.admin.delete(path)
        return await doors.admin.patch(path, json={"status": "disabled"} if how == "disable" else {"role": "readonly"})

    refused = await end(me)
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin")
    assert (await doors.admin.get("/v1/members")).status_code == 200  # nothing of it was done
    await key(doors.admin, "admin", member_id=keyless["id"])
    assert (await end(me)).status_code in (200, 204)


async def test_an_admin_key_of_a_disabled_member_is_no_way_in(doors: Doors):
    other = await service(doors.admin, "admin")
    await key(doors.admin, "admin", member_id=other["id"])
    await doors.admin.patch(f"/v1/members/{other['id']}", json={"status": "disabled"})
    mine = next(one for one in (await doors.admin.get("/v1/keys")).json()["keys"] if one["member_id"] != other["id"])
    refused = await doors.admin.delete(f"/v1/keys/{mine['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_admin_key")


async def joined(doors: Doors) -> Member:
    """A person who is an admin, however they became one."""
    async with doors.embedded.database.read() as db:
        tenant = await tenants.find(db, TenantId(doors.first.tenant_id))
    assert tenant is not None
    who = await person(doors.embedded, EMAIL)
    return await doors.embedded.member(tenant, name="Ada", role="admin", person_id=who.id)


async def test_an_admin_who_can_log_in_is_a_way_in(tmp_path: Path):
    login = {"type": "oauth2", "provider": "oidc", "issuer": PROVIDER, "client_id": "x", "client_secret": "x"}
    for number, methods in enumerate(([{"type": "api_key"}], [{"type": "api_key"}, login])):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with (
            embedded_in(folder, auth=Auth.model_validate({"methods": methods})) as embedded,
            opened(embedded) as doors,
        ):
            ada = await joined(doors)
            mine = (await doors.admin.get("/v1/keys")).json()["keys"][0]["id"]
            ended = await doors.admin.delete(f"/v1/keys/{mine}")
            assert ended.status_code == (204 if login in methods else 409)
            if login in methods:
                with pytest.raises(DomainError) as refused:
                    await members_service.remove(embedded, TenantId(ada.tenant_id), "cli", MemberId(ada.id))
                assert refused.value.stable_code == "last_admin"


async def test_of_two_admins_who_remove_each_other_one_stays(doors: Doors):
    for _ in range(5):
        tenant = await made(await doors.operator.post("/v1/tenants", json={"name": "T", "tier": "pro"}))
        admin = doors.caller(tenant["admin_key"])
        second = await key(admin, "admin")
        one, other = [await principal_of(doors, text) for text in (tenant["admin_key"], second["key"])]
        tenant_id = TenantId(tenant["id"])
        results = await asyncio.gather(
            members_service.remove(doors.embedded, tenant_id, one, other.member_id),
            members_service.remove(doors.embedded, tenant_id, other, one.member_id),
            return_exceptions=True,
        )
        refused = [one for one in results if one is not None]
        assert len(refused) == 1
        assert isinstance(refused[0], DomainError)
        rows = await members_service.page(doors.embedded, tenant_id, Page(10))
        assert [row.status for row in rows] == ["active"]


async def test_who_was_demoted_a_moment_ago_gives_nothing_any_more(doors: Doors):
    """The request was let in before; the change looks again."""
    bot = await service(doors.admin, "admin")
    stale = await principal_of(doors, (await key(doors.admin, "admin", member_id=bot["id"]))["key"])
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"role": "developer"})
    with pytest.raises(DomainError) as refused:
        await members_service.create(doors.embedded, stale.tenant_id, stale, name="x", role="admin")
    assert refused.value.stable_code == "exceeds_own_permissions"


async def test_another_tenants_member_does_not_exist(doors: Doors):
    bot = await service(doors.admin, "developer")
    other = await made(await doors.operator.post("/v1/tenants", json={"name": "Other", "tier": "pro"}))
    stranger = doors.caller(other["admin_key"])
    path = f"/v1/members/{bot['id']}"
    for answer in (
        await stranger.get(path),
        await stranger.patch(path, json={"name": "mine"}),
        await stranger.delete(path),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "member_not_found")
    assert bot["id"] not in [one["id"] for one in (await stranger.get("/v1/members")).json()["members"]]


async def limited(doors: Doors, **limits: int) -> None:
    tenant_id = (await doors.admin.get("/v1/me")).json()["tenant"]["id"]
    answer = await doors.operator.patch(f"/v1/tenants/{tenant_id}", json={"limits": limits})
    assert answer.status_code == 200, answer.text


async def test_their_keys_are_bounded(doors: Doors):
    await limited(doors, keys=2)
    bot = await service(doors.admin, "readonly")
    one = await doors.admin.post("/v1/keys", json={"name": "x", "role": "readonly", "member_id": bot["id"]})
    assert one.status_code == 201
    full = await doors.admin.post("/v1/keys", json={"name": "y", "role": "readonly", "member_id": bot["id"]})
    assert (full.status_code, full.json()["code"]) == (409, "too_many_keys")
    assert (await doors.admin.post(f"/v1/keys/{one.json()['id']}/rotate", json={})).status_code in (200, 201)


async def test_their_number_is_bounded(doors: Doors):
    await limited(doors, members=2)
    await service(doors.admin, "readonly")
    for path in ("/v1/members", "/v1/keys"):
        full = await doors.admin.post(path, json={"name": "x", "role": "readonly"})
        assert (full.status_code, full.json()["code"]) == (409, "too_many_members")


async def test_nobody_is_there_under_an_invented_id(doors: Doors):
    await role(doors.admin, "x", "usage:read")
    for invented in ("mem_nobody", "x", MemberId("mem_" + "0" * 22), "%00"):
        assert (await doors.admin.get(f"/v1/members/{invented}")).status_code == 404
