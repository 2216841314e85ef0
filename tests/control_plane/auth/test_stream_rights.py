"""A stream ends when whoever reads it would be let in no more, whatever they showed and wherever it was taken from them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import delete, update

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.sessions.stream_rights import StreamRights
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.tenants.ids import MemberId, TenantId
from amplifier_api_server.tenants.models import ApiKey, Member, Role, Tenant
from amplifier_api_server.tenants.repository import keys
from tests.control_plane.auth.conftest import House
from tests.control_plane.auth.issuer import published, rsa
from tests.control_plane.auth.test_members_keys import enter, key_of, own_role


class Watched:
    """Streams of one server, and which of them have ended."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.streams = OpenStreams()
        self.rights = StreamRights(
            streams=self.streams, authenticator=house.embedded.authenticator, clock=house.embedded.clock
        )
        self.ended: list[str] = []

    def open(self, name: str, principal: Principal) -> None:
        self.streams.add(principal, lambda: self.ended.append(name))

    async def elsewhere(self, *statements: Any) -> None:
        """Changed by another process: nobody tells this one."""
        async with self.house.embedded.database.write() as db:
            for statement in statements:
                await db.execute(statement)

    async def look(self) -> list[str]:
        self.ended.clear()
        await self.rights.look()
        return sorted(self.ended)


@pytest.fixture
def watched(house: House) -> Watched:
    return Watched(house)


async def two(watched: Watched, role: str = "developer") -> tuple[Member, Member]:
    """A member with a token and one with a key, each reading a stream; and both a second one that nothing happens to."""
    house = watched.house
    by_token = await house.enter(house.token(roles=[role]))
    member = await house.embedded.member(house.tenant, role=role)
    watched.open("token", by_token)
    watched.open("key", await enter(house.embedded, await key_of(house.embedded, member, role)))
    other = await house.embedded.member(house.tenant)
    watched.open("other token", await house.enter(house.token(sub="other")))
    watched.open("other key", await enter(house.embedded, await key_of(house.embedded, other, "admin")))
    async with house.embedded.database.read() as db:
        row = await db.get(Member, by_token.member_id)
    assert row is not None
    return row, member


async def test_streams_go_on_while_nothing_changes(watched: Watched):
    await two(watched)
    assert await watched.look() == []
    watched.house.embedded.clock.advance(600)
    assert await watched.look() == []


@pytest.mark.parametrize("status", ["disabled", "removed"])
async def test_a_member_who_is_stopped_elsewhere_reads_no_more(watched: Watched, status: str):
    stopped = await two(watched)
    for member in stopped:
        await watched.elsewhere(update(Member).where(Member.id == member.id).values(status=status))  # type: ignore[arg-type]
    assert await watched.look() == ["key", "token"]


async def test_a_key_revoked_elsewhere_ends_its_streams(watched: Watched):
    _, member = await two(watched)
    now = watched.house.embedded.clock.now()
    await watched.elsewhere(update(ApiKey).where(ApiKey.member_id == member.id).values(revoked_at=now))  # type: ignore[arg-type]
    assert await watched.look() == ["key"]


async def test_a_key_that_is_over_ends_its_streams(watched: Watched):
    _, member = await two(watched)
    clock = watched.house.embedded.clock
    await watched.elsewhere(update(ApiKey).where(ApiKey.member_id == member.id).values(expires_at=clock.now()))  # type: ignore[arg-type]
    clock.advance(1)
    assert await watched.look() == ["key"]


async def test_a_token_that_is_over_ends_its_streams_and_no_other_token_s(watched: Watched):
    house = watched.house
    at = int(house.embedded.clock.now().timestamp())
    watched.open("short", await house.enter(house.token(exp=at + 60)))
    watched.open("long", await house.enter(house.token(exp=at + 3600)))
    house.embedded.clock.advance(89)
    assert await watched.look() == []
    house.embedded.clock.advance(1)
    assert await watched.look() == ["short"]


async def test_a_token_ends_without_the_database(watched: Watched, monkeypatch):
    house = watched.house
    watched.open("token", await house.enter(house.token()))

    async def fails(*_: Any) -> Any:
        raise OSError("disk")

    monkeypatch.setattr(keys, "find_by_digest", fails)
    monkeypatch.setattr(house.embedded.authenticator._tokens, "still", fails)
    house.embedded.clock.advance(3600)
    with pytest.raises(OSError):
        await watched.look()
    assert watched.ended == ["token"]


async def test_a_withdrawn_signing_key_ends_the_streams_of_its_tokens(watched: Watched):
    house = watched.house
    at = int(house.embedded.clock.now().timestamp())
    watched.open("token", await house.enter(house.token(exp=at + 7200)))
    house.issuer.keys = [published(rsa("two"), "k2")]
    house.embedded.clock.advance(601)
    await house.embedded.authenticator._tokens._issuers[house.issuer.url]._fetching.finished()
    assert await watched.look() == ["token"]


async def test_a_suspended_tenant_s_streams_end(watched: Watched):
    await two(watched)
    await watched.elsewhere(update(Tenant).where(Tenant.id == watched.house.tenant.id).values(status="suspended"))  # type: ignore[arg-type]
    assert await watched.look() == ["key", "other key", "other token", "token"]


async def test_a_role_that_is_deleted_or_holds_less_ends_the_streams_of_those_who_had_it(watched: Watched):
    role = await own_role(watched.house.embedded, watched.house.tenant, "watcher", "sessions:read", "events:read")
    await two(watched, "watcher")
    await watched.elsewhere(
        update(Role).where(Role.id == role.id).values(permissions=["sessions:read", "events:read", "usage:read"])  # type: ignore[arg-type]
    )
    assert await watched.look() == []  # more than before
    await watched.elsewhere(update(Role).where(Role.id == role.id).values(permissions=["sessions:read"]))  # type: ignore[arg-type]
    assert await watched.look() == ["key", "token"]
    await watched.elsewhere(delete(Role).where(Role.id == role.id))  # type: ignore[arg-type]
    assert await watched.look() == ["key", "token"]


async def test_a_member_with_a_smaller_role_reads_no_more_by_an_older_key(watched: Watched):
    _, member = await two(watched)
    await watched.elsewhere(update(Member).where(Member.id == member.id).values(role="readonly"))  # type: ignore[arg-type]
    assert await watched.look() == ["key"]


async def test_who_cannot_be_looked_up_again_reads_no_more(watched: Watched):
    watched.open("stranger", await watched.house.embedded.principal())
    assert await watched.look() == ["stranger"]


async def test_one_stream_that_can_not_be_ended_keeps_no_other_from_its_end(watched: Watched):
    def breaks() -> None:
        raise RuntimeError("broken")

    stranger = await watched.house.embedded.principal()
    watched.streams.add(stranger, breaks)
    watched.open("after", stranger)
    assert await watched.look() == ["after"]


async def test_what_is_revoked_here_ends_at_once(watched: Watched):
    house = watched.house
    principal = await house.enter(house.token())
    watched.open("one", principal)
    watched.streams.end_member(MemberId(principal.member_id))
    watched.streams.end_credential(principal.credential_id)
    watched.streams.end_tenant(TenantId(house.tenant.id))
    watched.streams.end_member(MemberId("mem_nobody"))
    assert watched.ended == ["one", "one", "one"]
