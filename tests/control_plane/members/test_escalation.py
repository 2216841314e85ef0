"""Nobody gives what they don't hold: no sequence of operations gets anybody more than they began with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.invitations import service as invitations
from amplifier_api_server.control_plane.keys import service as keys
from amplifier_api_server.control_plane.members import service as members
from amplifier_api_server.control_plane.roles import service as roles
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import CredentialId, KeyId, MemberId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus
from amplifier_api_server.tenants.tiers import DEFAULT
from tests.control_plane.accounts.doors import Doors
from tests.control_plane.members.people import holding, key, made, person, principal_of, role, service, with_role
from tests.tenants.embedded import Embedded

MANAGING = ("keys:*", "members:*", "roles:*")


async def test_who_manages_members_makes_no_admin(doors: Doors):
    """The classic: a role that may update members, but lacks most of what an admin has."""
    await service(doors.admin, "admin", "another admin")
    manager = await with_role(doors, "manager", *MANAGING, "sessions:read")
    for path, body in (
        ("/v1/members", {"name": "x", "role": "admin"}),
        ("/v1/keys", {"name": "x", "role": "admin"}),
        ("/v1/keys", {"name": "x", "role": "developer"}),
        ("/v1/invitations", {"email": "me@example.com", "role": "admin"}),
        ("/v1/roles", {"name": "x", "permissions": ["*"]}),
        ("/v1/roles", {"name": "x", "permissions": ["keys:read", "sessions:execute"]}),
    ):
        refused = await manager.post(path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "exceeds_own_permissions"), path
        assert refused.json()["permissions"]
    small = await made(await manager.post("/v1/members", json={"name": "x", "role": "manager"}))
    up = await manager.patch(f"/v1/members/{small['id']}", json={"role": "admin"})
    assert (up.status_code, up.json()["code"]) == (403, "exceeds_own_permissions")
    widened = await manager.patch("/v1/roles/manager", json={"permissions": [*MANAGING, "usage:read"]})
    assert (widened.status_code, widened.json()["permissions"]) == (403, ["usage:read"])


async def test_who_holds_more_is_beyond_who_holds_less(doors: Doors):
    boss = await service(doors.admin, "admin", "boss")
    boss_key = await key(doors.admin, "admin", member_id=boss["id"])
    await role(doors.admin, "billing", "usage:read")
    manager = await with_role(doors, "manager", *MANAGING)
    path = f"/v1/members/{boss['id']}"
    for answer in (
        await manager.patch(path, json={"role": "manager"}),
        await manager.patch(path, json={"status": "disabled"}),
        await manager.patch(path, json={"limits": {"requests_per_minute": 0}}),
        await manager.delete(path),
        await manager.post("/v1/keys", json={"name": "x", "role": "manager", "member_id": boss["id"]}),
        await manager.post(f"/v1/keys/{boss_key['id']}/rotate"),  # it would learn the successor
        await manager.delete(f"/v1/keys/{boss_key['id']}"),
        await manager.patch("/v1/roles/billing", json={"permissions": ["keys:read"]}),
        await manager.delete("/v1/roles/billing"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "exceeds_own_permissions"), answer.request.url
    assert (await doors.caller(boss_key["key"]).get("/v1/keys")).status_code == 200


async def test_everybody_may_end_their_own_key(doors: Doors):
    """Also one whose member was given a smaller role since."""
    bot = await service(doors.admin, "admin")
    own = await key(doors.admin, "admin", member_id=bot["id"])
    await role(doors.admin, "closer", "keys:delete")
    await doors.admin.patch(f"/v1/members/{bot['id']}", json={"role": "closer"})
    assert (await doors.caller(own["key"]).delete(f"/v1/keys/{own['id']}")).status_code == 204


OPERATIONS = st.sampled_from(
    [
        "make_role",
        "change_role",
        "make_member",
        "change_member",
        "enable",
        "make_key",
        "rotate",
        "invite",
        "delete_role",
    ]
)
GRANTS = st.lists(
    st.sampled_from(
        ["*", "keys:*", "keys:create", "members:*", "members:update", "roles:*", "usage:read", "sessions:*"]
    ),
    min_size=1,
    max_size=4,
)
STEPS = st.lists(
    st.tuples(OPERATIONS, st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), GRANTS), min_size=1, max_size=14
)


@dataclass
class World:
    """A tenant with an admin, and somebody who uses every credential that they can lay hands on."""

    embedded: Embedded
    tenant_id: TenantId
    callers: list[Principal] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    key_ids: list[str] = field(default_factory=list)
    member_ids: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=lambda: ["mine", "admin", "others"])

    async def refresh(self) -> None:
        """What every credential of theirs is good for now."""
        for place, caller in enumerate(self.callers):
            if caller.method == "login":
                self.callers[place] = await self.joined(caller.member_id)
        for text in self.texts:
            try:
                self.callers.append(await self.embedded.authenticator.principal_of(text))
            except DomainError:
                continue

    async def joined(self, member_id: str) -> Principal:
        """A login as a member."""
        row = await members.find(self.embedded, self.tenant_id, MemberId(member_id))
        async with self.embedded.database.read() as db:
            grants = await roles.grants_of(db, self.tenant_id, row.role)
        return Principal(
            CredentialId("login_x"),
            self.tenant_id,
            MemberId(row.id),
            row.role,
            grants if row.status == MemberStatus.ACTIVE else frozenset(),
            "pro",
            DEFAULT,
            method="login",
        )

    async def do(self, operation: str, numbers: tuple[int, int, int], grants: list[str]) -> None:
        who, one, other = numbers
        by = self.callers[who % len(self.callers)]
        role_name = self.roles[one % len(self.roles)]
        member_id = MemberId(self.member_ids[other % len(self.member_ids)])
        at, tenant_id = self.embedded, self.tenant_id
        if operation == "make_role":
            name = f"role-{len(self.roles)}"
            await roles.create(at, by, name, grants)
            self.roles.append(name)
        elif operation == "change_role":
            await roles.change(at, by, role_name, grants=grants)
        elif operation == "delete_role":
            await roles.remove(at, by, role_name)
        elif operation == "make_member":
            row = await members.create(at, tenant_id, by, name="m", role=role_name)
            self.member_ids.append(row.id)
        elif operation == "change_member":
            await members.change(at, tenant_id, by, member_id, members.Wish(role=role_name))
        elif operation == "enable":
            status = MemberStatus.ACTIVE if one % 2 else MemberStatus.DISABLED
            await members.change(at, tenant_id, by, member_id, members.Wish(status=status))
        elif operation == "make_key":
            wish = keys.Wish("k", role_name, None, member_id if other % 2 else None)
            new = await keys.create(at, tenant_id, wish, by)
            self.texts.append(new.text)
            self.key_ids.append(new.row.id)
        elif operation == "rotate":
            key_id = KeyId(self.key_ids[one % len(self.key_ids)])
            new = await keys.rotate(at, tenant_id, key_id, by, overlap_seconds=60)
            self.texts.append(new.text)
            self.key_ids.append(new.row.id)
        else:
            sent = await invitations.create(at, tenant_id, by, invitations.Wish("e@example.com", role_name))
            row = await invitations.accept(at, await person(at, "e@example.com"), sent.token)
            self.member_ids.append(row.id)
            self.callers.append(await self.joined(row.id))


async def world(doors: Doors, grants: list[str]) -> World:
    tenant = await made(await doors.operator.post("/v1/tenants", json={"name": "T", "tier": "pro"}))
    admin = doors.caller(tenant["admin_key"])
    owner = await principal_of(doors, tenant["admin_key"])
    found = World(doors.embedded, TenantId(tenant["id"]))
    await role(admin, "mine", *grants)
    await role(admin, "others", "sessions:*", "collections:install")
    begun = await key(admin, "mine")
    others = await key(admin, "others")
    found.texts.append(begun["key"])
    found.key_ids += [str(owner.credential_id), begun["id"], others["id"]]
    found.member_ids += [owner.member_id, begun["member_id"], others["member_id"]]
    await found.refresh()
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    begun=st.lists(
        st.sampled_from([*MANAGING, "keys:create", "members:update", "roles:update", "usage:read", "sessions:read"]),
        min_size=2,
        max_size=6,
    ),
    steps=STEPS,
)
async def test_no_sequence_of_operations_gets_more_than_it_began_with(doors: Doors, begun: Any, steps: Any):
    at = await world(doors, begun)
    limit = holding(begun)
    assert limit < holding(["*"])
    for operation, *numbers, grants in steps:
        try:
            await at.do(operation, tuple(numbers), grants)
        except DomainError:
            continue
        await at.refresh()
        for caller in at.callers:
            assert holding(caller.grants) <= limit, (operation, caller.role)
