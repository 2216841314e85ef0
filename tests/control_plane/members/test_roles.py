"""Roles of a tenant's own: made, given, changed and removed."""

from __future__ import annotations

from typing import Any

import pytest

from amplifier_api_server.control_plane.roles import service as roles_service
from tests.control_plane.accounts.doors import Doors
from tests.control_plane.members.people import key, made, role, service, with_role


async def test_a_role_holds_what_it_names_and_nothing_else(doors: Doors):
    reader = await with_role(doors, "key-reader", "keys:read", "usage:read")
    assert (await reader.get("/v1/keys")).status_code == 200
    assert (await reader.get("/v1/usage")).status_code == 200
    refused = await reader.post("/v1/keys", json={"name": "x", "role": "readonly"})
    assert (refused.status_code, refused.json()["permission"]) == (403, "keys:create")
    assert "key-reader" in refused.json()["detail"]


async def test_the_roles_that_can_be_given_are_listed(doors: Doors):
    await role(doors.admin, "zeta", "usage:read")
    await role(doors.admin, "alpha", "sessions:*", "sessions:*")
    listed = (await doors.admin.get("/v1/roles")).json()["roles"]
    assert [one["name"] for one in listed] == ["admin", "developer", "readonly", "alpha", "zeta"]
    assert [one["is_built_in"] for one in listed] == [True, True, True, False, False]
    assert listed[3]["permissions"] == ["sessions:*"]
    for one in listed:
        assert (await doors.admin.get(f"/v1/roles/{one['name']}")).json() == one


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"permissions": ["usage:read"]}, "name"),
        ({"name": "Big", "permissions": ["usage:read"]}, "name"),
        ({"name": "-x", "permissions": ["usage:read"]}, "name"),
        ({"name": "a" * 64, "permissions": ["usage:read"]}, "name"),
        ({"name": "a\n", "permissions": ["usage:read"]}, "name"),
        ({"name": "x"}, "permissions"),
        ({"name": "x", "permissions": []}, "permissions"),
        ({"name": "x", "permissions": ["usage:read", "usage:fly"]}, "permissions.1"),
        ({"name": "x", "permissions": ["tenants:read"]}, "permissions.0"),
        ({"name": "x", "permissions": ["tenants:*"]}, "permissions.0"),
        ({"name": "x", "permissions": ["usage:read"] * 101}, "permissions"),
        ({"name": "x", "permissions": ["usage:read"], "description": "a\x00b"}, "description"),
        ({"name": "x", "permissions": ["usage:read"], "is_built_in": True}, "is_built_in"),
    ],
)
async def test_a_wrong_body_is_422_and_names_the_field(doors: Doors, body: Any, field: str):
    answer = await doors.admin.post("/v1/roles", json=body)
    assert answer.status_code == 422, answer.text
    assert field in [one["field"] for one in answer.json()["errors"]]


@pytest.mark.parametrize("name", ["admin", "developer", "readonly", "operator"])
async def test_what_is_built_in_stays_as_it_is(doors: Doors, name: str):
    taken = await doors.admin.post("/v1/roles", json={"name": name, "permissions": ["usage:read"]})
    assert (taken.status_code, taken.json()["code"]) == (409, "role_exists")
    expected = (404, "role_not_found") if name == "operator" else (409, "built_in_role")
    for answer in (
        await doors.admin.patch(f"/v1/roles/{name}", json={"permissions": ["usage:read"]}),
        await doors.admin.delete(f"/v1/roles/{name}"),
    ):
        assert (answer.status_code, answer.json()["code"]) == expected


async def test_a_name_is_taken_once(doors: Doors):
    await role(doors.admin, "x", "usage:read")
    again = await doors.admin.post("/v1/roles", json={"name": "x", "permissions": ["usage:read"]})
    assert (again.status_code, again.json()["code"]) == (409, "role_exists")


async def test_their_number_is_bounded(doors: Doors, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(roles_service, "MAX_ROLES", 2)
    await role(doors.admin, "one", "usage:read")
    await role(doors.admin, "two", "usage:read")
    full = await doors.admin.post("/v1/roles", json={"name": "three", "permissions": ["usage:read"]})
    assert (full.status_code, full.json()["code"]) == (409, "too_many_roles")


async def test_a_changed_role_holds_for_everybody_who_has_it_at_once(doors: Doors):
    reader = await with_role(doors, "x", "usage:read")
    assert (await reader.get("/v1/usage")).status_code == 200
    assert (await reader.get("/v1/keys")).status_code == 403
    changed = await doors.admin.patch("/v1/roles/x", json={"permissions": ["keys:read"], "description": "Keys"})
    assert (changed.json()["permissions"], changed.json()["description"]) == (["keys:read"], "Keys")
    assert (await reader.get("/v1/usage")).status_code == 403
    assert (await reader.get("/v1/keys")).status_code == 200
    assert doors.embedded.narrowed == [doors.first.tenant_id]
    await doors.admin.patch("/v1/roles/x", json={"permissions": ["keys:read", "usage:read"]})
    assert doors.embedded.narrowed == [doors.first.tenant_id]  # who may do more keeps what they have open


async def test_a_patch_of_nothing_changes_nothing(doors: Doors):
    before = await role(doors.admin, "x", "usage:read")
    doors.embedded.clock.advance(60)
    assert (await doors.admin.patch("/v1/roles/x", json={})).json() == before


@pytest.mark.parametrize("use", ["member", "key", "invitation"])
async def test_a_role_that_somebody_has_is_not_removed(doors: Doors, use: str):
    await role(doors.admin, "x", "usage:read")
    if use == "member":
        path = f"/v1/members/{(await service(doors.admin, 'x'))['id']}"
    elif use == "key":
        admin = await service(doors.admin, "admin")
        path = f"/v1/keys/{(await key(doors.admin, 'x', member_id=admin['id']))['id']}"
    else:
        body = {"email": "a@example.com", "role": "x"}
        path = f"/v1/invitations/{(await made(await doors.admin.post('/v1/invitations', json=body)))['id']}"
    refused = await doors.admin.delete("/v1/roles/x")
    assert (refused.status_code, refused.json()["code"], refused.json()[use + "s"]) == (409, "role_in_use", 1)
    assert (await doors.admin.delete(path)).status_code == 204
    assert (await doors.admin.delete("/v1/roles/x")).status_code == 204
    assert (await doors.admin.get("/v1/roles/x")).status_code == 404


async def test_another_tenants_role_does_not_exist(doors: Doors):
    await role(doors.admin, "x", "usage:read")
    other = await made(await doors.operator.post("/v1/tenants", json={"name": "Other", "tier": "pro"}))
    stranger = doors.caller(other["admin_key"])
    for answer in (
        await stranger.get("/v1/roles/x"),
        await stranger.patch("/v1/roles/x", json={"description": "mine"}),
        await stranger.delete("/v1/roles/x"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "role_not_found")
    for path, body in (
        ("/v1/keys", {"name": "k", "role": "x"}),
        ("/v1/members", {"name": "m", "role": "x"}),
        ("/v1/invitations", {"email": "a@example.com", "role": "x"}),
    ):
        assert (await stranger.post(path, json=body)).status_code == 422
    await role(stranger, "x", "keys:read")  # a name of its own
    assert (await doors.admin.get("/v1/roles/x")).json()["permissions"] == ["usage:read"]
