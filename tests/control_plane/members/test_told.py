"""What management services tell: each change is in the audit log, and followers of the tenant learn of it."""

from __future__ import annotations

from typing import Any

import pytest

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.keys import service as keys
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.tenants.errors import Conflict
from amplifier_api_server.tenants.ids import CredentialId, KeyId, MemberId, TenantId
from amplifier_api_server.tenants.tiers import DEFAULT
from tests.control_plane.accounts.doors import Doors
from tests.control_plane.members.people import audit, events, key, made, principal_of, role, service


async def test_every_change_is_in_the_log_with_who_and_what(doors: Doors):
    me = await principal_of(doors, doors.first.tenant_key)
    bot = await service(doors.admin, "developer", "nightly")
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"name": "weekly", "role": "readonly"})
    await role(doors.admin, "x", "usage:read")
    await doors.admin.patch("/v1/roles/x", json={"permissions": ["keys:read"]})
    await doors.admin.delete("/v1/roles/x")
    body = {"email": "a@example.com", "role": "admin"}
    sent = await made(await doors.admin.post("/v1/invitations", json=body))
    await doors.admin.delete(f"/v1/invitations/{sent['id']}")
    one = await key(doors.admin, "readonly", member_id=bot["id"])
    two = await made(await doors.admin.post(f"/v1/keys/{one['id']}/rotate", json={"overlap": 60}))
    await doors.admin.delete(f"/v1/keys/{two['id']}")
    await doors.admin.put("/v1/web-policy", json={"deny": ["example.org"]})
    await doors.admin.delete(f"/v1/members/{bot['id']}")
    entries = await audit(doors.embedded)
    assert [(entry.action, entry.target) for entry in entries] == [
        ("createMember", bot["id"]),
        ("updateMember", bot["id"]),
        ("createRole", "x"),
        ("updateRole", "x"),
        ("deleteRole", "x"),
        ("createInvitation", sent["id"]),
        ("revokeInvitation", sent["id"]),
        ("createKey", one["id"]),
        ("rotateKey", one["id"]),
        ("revokeKey", two["id"]),
        ("setWebPolicy", doors.first.tenant_id),
        ("deleteMember", bot["id"]),
    ]
    assert {entry.action for entry in entries} <= set(OPERATIONS)
    for entry in entries:
        assert (entry.tenant_id, entry.actor) == (doors.first.tenant_id, me.member_id)
        assert (entry.credential_id, entry.door) == (me.credential_id, "rest")
        assert entry.request_id
    assert entries[1].changes == {"name": ["nightly", "weekly"], "role": ["developer", "readonly"]}
    assert entries[3].changes == {"permissions": [["usage:read"], ["keys:read"]]}
    assert entries[-1].changes == {"status": ["active", "removed"], "keys": [[one["id"]], []]}
    told = str([entry.changes for entry in entries])
    assert not [secret for secret in (one["key"], two["key"], sent["token"]) if secret in told]


async def test_followers_learn_of_members_keys_and_the_tenant(doors: Doors):
    told: list[str] = []
    doors.embedded.database.on_told = told.append
    bot = await service(doors.admin, "developer", "nightly")
    made_key = await key(doors.admin, "developer", member_id=bot["id"])
    before = len(await events(doors.embedded))
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"status": "disabled"})
    await doors.admin.delete(f"/v1/members/{bot['id']}")
    await doors.operator.patch(f"/v1/tenants/{doors.first.tenant_id}", json={"name": "Renamed"})
    found = [(one.type, one.data) for one in (await events(doors.embedded))[before:]]
    assert found == [
        (
            "member.updated",
            {"member_id": bot["id"], "changed": ["status"], "role": "developer", "status": "disabled"},
        ),
        ("key.revoked", {"key_id": made_key["id"], "member_id": bot["id"]}),
        ("member.removed", {"member_id": bot["id"], "name": "nightly", "kind": "service"}),
        ("tenant.updated", {"changed": ["name"], "name": "Renamed", "tier": "enterprise", "status": "active"}),
    ]
    assert set(told) == {doors.first.tenant_id}


async def test_an_operators_change_of_a_tenant_is_in_the_tenants_log(doors: Doors):
    tenant = await made(await doors.operator.post("/v1/tenants", json={"name": "T", "tier": "pro"}))
    await doors.operator.patch(f"/v1/tenants/{tenant['id']}", json={"tier": "free"})
    await doors.operator.patch(f"/v1/tenants/{tenant['id']}", json={"tier": "free"})  # changes nothing
    await doors.operator.delete(f"/v1/tenants/{tenant['id']}")
    entries = [one for one in await audit(doors.embedded) if one.tenant_id == tenant["id"]]
    assert [one.action for one in entries] == ["createTenant", "createKey", "updateTenant", "deleteTenant"]
    assert all(one.actor.startswith("op_") for one in entries)
    assert entries[2].changes == {"tier": ["pro", "free"]}
    assert tenant["admin_key"] not in str([one.changes for one in entries])


async def test_what_was_refused_is_not_in_the_log(doors: Doors):
    mine = (await doors.admin.get("/v1/keys")).json()["keys"][0]["id"]
    before = len(await events(doors.embedded))
    with pytest.raises(Conflict):
        await keys.revoke(doors.embedded, TenantId(doors.first.tenant_id), KeyId(mine), "cli")
    assert await audit(doors.embedded) == []
    assert len(await events(doors.embedded)) == before
    assert (await doors.admin.get(f"/v1/keys/{mine}")).status_code == 200


async def test_the_command_line_is_named_as_such(doors: Doors):
    tenant_id = TenantId(doors.first.tenant_id)
    new = await keys.create(doors.embedded, tenant_id, keys.Wish("k", "readonly"), "cli")
    (entry,) = await audit(doors.embedded)
    assert (entry.actor, entry.credential_id, entry.tenant_id, new.row.created_by) == ("cli", "", tenant_id, "cli")


def caller(credential: str, member: str) -> Principal:
    tenant = TenantId("ten_1")
    return Principal(CredentialId(credential), tenant, MemberId(member), "admin", frozenset(), "pro", DEFAULT)


def test_a_members_streams_end_whatever_opened_them():
    streams, ended = OpenStreams(), []
    opened: list[tuple[Principal, Any]] = []
    for credential, member in (("key_1", "mem_1"), ("login_1", "mem_1"), ("jwt_1", "mem_2")):
        opened.append((caller(credential, member), lambda credential=credential: ended.append(credential)))
        streams.add(*opened[-1])
    streams.end_member(MemberId("mem_1"))
    assert sorted(ended) == ["key_1", "login_1"]
    for one in opened:
        streams.remove(*one)
    streams.end_member(MemberId("mem_2"))
    assert sorted(ended) == ["key_1", "login_1"]
