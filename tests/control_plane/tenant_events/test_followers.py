"""Following events, on a database of its own: nothing is lost, nothing is doubled, and what is gone is said to be."""

import asyncio
import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.tenant_events.followers import START, Followers
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.control_plane.tenant_events.rights import PERMISSIONS
from amplifier_api_server.tenants.errors import Forbidden, Gone, Refused
from amplifier_api_server.tenants.ids import CredentialId, MemberId, TenantId
from amplifier_api_server.tenants.permissions import EVERYBODY
from amplifier_api_server.tenants.tiers import DEFAULT
from tests.tenants.embedded import embedded, embedded_in

__all__ = ["embedded"]

ME, OTHER = TenantId("ten_me"), TenantId("ten_other")
DAY = 24 * 3600


def principal(tenant=ME, *grants: str) -> Principal:
    """Who may read everything, or what the grants say."""
    return Principal(CredentialId("key_x"), tenant, MemberId("mem_x"), "x", frozenset(grants or {"*"}), "free", DEFAULT)


READER = principal()


@pytest.fixture
def followers(embedded):
    return Followers(settings=embedded.settings, database=embedded.database, clock=embedded.clock)


async def happen(embedded, *numbers: int, tenant=ME, kind=EventType.KEY_CREATED) -> None:
    async with embedded.database.write() as db:
        for number in numbers:
            await emit(db, embedded.clock, tenant, kind, {"number": number})


async def read(follower) -> list[int]:
    """What is there now."""
    found: list[int] = []
    while events := await follower.next(0.05):
        found += [one.data["number"] for one in events]
    return found


async def test_a_reader_is_told_what_happens_from_now_on(followers, embedded):
    await happen(embedded, 1)
    follower = await followers.open(READER)
    await happen(embedded, 2)
    await happen(embedded, 3, tenant=OTHER)
    await happen(embedded, 4)
    assert await read(follower) == [2, 4]


async def test_a_reader_from_the_start_gets_all_that_is_kept(followers, embedded):
    await happen(embedded, *range(250))
    assert await read(await followers.open(READER, START)) == list(range(250))


async def test_what_is_rolled_back_was_never_told(followers, embedded):
    follower = await followers.open(READER)
    with contextlib.suppress(ZeroDivisionError):
        async with embedded.database.write() as db:
            await emit(db, embedded.clock, ME, EventType.KEY_CREATED, {"number": 1})
            raise ZeroDivisionError
    await happen(embedded, 2)
    assert await read(follower) == [2]


async def test_a_commit_wakes_a_reader_at_once(followers, embedded):
    follower = await followers.open(READER)
    assert await follower.next(0.01) == []
    waiting = asyncio.create_task(follower.next(60))
    await happen(embedded, 1)
    async with asyncio.timeout(60):
        while not (events := await waiting):
            waiting = asyncio.create_task(follower.next(60))
    assert events[0].data == {"number": 1}


async def test_a_reader_asks_for_types(followers, embedded):
    follower = await followers.open(READER, types=[EventType.KEY_REVOKED])
    await happen(embedded, 1)
    await happen(embedded, 2, kind=EventType.KEY_REVOKED)
    await happen(embedded, 3)
    assert [one.data["number"] for one in await follower.next(1) or []] == [2]
    assert follower.position > 2


async def test_a_reader_is_told_what_it_may_read_elsewhere_and_moves_past_the_rest(followers, embedded):
    await happen(embedded, 1, kind=EventType.SESSION_CREATED)
    for number, kind in enumerate((EventType.KEY_CREATED, EventType.MEMBER_ADDED, EventType.COLLECTION_REMOVED)):
        await happen(embedded, 2 + number, kind=kind)
    await happen(embedded, 9, kind=EventType.TENANT_UPDATED)
    readonly = await followers.open(principal(ME, "events:read", "sessions:read"), START)
    assert [one.data["number"] for one in await readonly.next(1) or []] == [1, 9]
    keys = await followers.open(principal(ME, "events:read", "keys:read"), START)
    assert [one.data["number"] for one in await keys.next(1) or []] == [2, 9]
    everything = await followers.open(READER, START)
    assert len(await everything.next(1) or []) == 5
    assert readonly.position == everything.position


@pytest.mark.parametrize("kind", EventType)
async def test_a_type_that_one_may_not_read_is_refused_by_name(followers, kind):
    needed = PERMISSIONS[kind]
    if needed not in EVERYBODY:
        with pytest.raises(Forbidden, match=needed) as refused:
            await followers.open(principal(ME, "events:read"), types=[kind])
        assert refused.value.extra["permission"] == needed
        assert not followers._by_tenant
    (await followers.open(principal(ME, "events:read", needed), types=[kind])).close()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(st.sampled_from(["happen", "other", "read", "again"]), max_size=40))
async def test_whatever_happens_between_reconnects_nothing_is_lost_or_doubled(tmp_path_factory, steps):
    async with embedded_in(tmp_path_factory.mktemp("db")) as embedded:
        followers = Followers(settings=embedded.settings, database=embedded.database, clock=embedded.clock)
        follower, seen, number = await followers.open(READER), [], 0
        for step in [*steps, "read"]:
            if step == "happen":
                number += 1
                await happen(embedded, number)
            elif step == "other":
                await happen(embedded, 0, tenant=OTHER)
            elif step == "read":
                seen += await read(follower)
            else:
                follower.close()
                follower = await followers.open(READER, follower.position)
        assert seen == list(range(1, number + 1))


class TestRetention:
    async def test_old_events_are_forgotten_but_the_last_of_each_tenant(self, followers, embedded):
        await happen(embedded, *range(5))
        await happen(embedded, *range(3), tenant=OTHER)
        embedded.clock.advance(7 * DAY + 1)
        await happen(embedded, 9)
        await followers.sweep()
        async with embedded.database.read() as db:
            rows = (await (await db.connection()).exec_driver_sql("SELECT count(*) FROM tenant_event")).scalar()
        assert rows == 3

    async def test_a_clock_that_is_set_forward_and_back_costs_no_event(self, followers, embedded):
        await happen(embedded, 1, 2)
        embedded.clock.jump(8 * DAY)
        await followers.sweep()
        embedded.clock.jump(-8 * DAY)
        assert await read(await followers.open(READER, START)) == [1, 2]

    async def test_who_missed_what_is_gone_is_told(self, followers, embedded):
        await happen(embedded, 1)
        seen = (await (await followers.open(READER, START)).next(1))[-1].id
        await happen(embedded, 2, 3)
        embedded.clock.advance(7 * DAY + 1)
        for _ in range(2):  # before it was swept, and after
            with pytest.raises(Gone) as found:
                await followers.open(READER, seen)
            assert found.value.stable_code == "events_gone"
            await followers.sweep()

    async def test_who_missed_nothing_goes_on(self, followers, embedded):
        await happen(embedded, 1, 2)
        seen = (await (await followers.open(READER, START)).next(1))[-1].id
        embedded.clock.advance(30 * DAY)
        await followers.sweep()
        follower = await followers.open(READER, seen)
        await happen(embedded, 3)
        assert await read(follower) == [3]

    async def test_a_reader_that_falls_behind_is_told_in_the_middle(self, followers, embedded):
        follower = await followers.open(READER)
        await happen(embedded, 1, 2)
        embedded.clock.advance(7 * DAY + 1)
        with pytest.raises(Gone):
            await follower.next(1)

    async def test_the_start_is_after_what_is_gone(self, followers, embedded):
        await happen(embedded, 1)
        embedded.clock.advance(7 * DAY + 1)
        await happen(embedded, 2)
        await followers.sweep()
        assert await read(await followers.open(READER, START)) == [2]

    async def test_a_place_that_was_never_told_of_is_gone(self, followers, embedded):
        await happen(embedded, 1)
        with pytest.raises(Gone):
            await followers.open(READER, 10**18 - 1)

    async def test_numbers_are_never_used_twice(self, followers, embedded):
        await happen(embedded, 1)
        last = (await (await followers.open(READER, START)).next(1))[-1].id
        async with embedded.database.write() as db:
            await (await db.connection()).exec_driver_sql("DELETE FROM tenant_event")
        embedded.clock.advance(1)
        await happen(embedded, 2)
        assert (await (await followers.open(READER, START)).next(1))[-1].id > last


async def test_a_tenant_has_so_many_readers_and_others_as_many(followers, embedded):
    readers = [await followers.open(READER) for _ in range(100)]
    with pytest.raises(Refused) as found:
        await followers.open(READER)
    assert found.value.stable_code == "event_readers_exceeded"
    await followers.open(principal(OTHER))
    readers[0].close()
    readers[0].close()
    await followers.open(READER)


async def test_a_reader_that_can_not_begin_holds_no_place(followers, embedded):
    for _ in range(150):
        with pytest.raises(Gone):
            await followers.open(READER, 10**18 - 1)
    assert not followers._by_tenant


async def test_what_another_process_wrote_is_found(followers, embedded):
    """The command line, beside the server: it has a connection of its own, and tells nobody."""
    follower = await followers.open(READER)
    assert await follower.next(0.01) == []
    seen = await followers.look(None)
    assert await follower.next(0.01) == []
    embedded.database.on_told = None
    await happen(embedded, 1)
    assert await follower.next(0.01) == []
    await followers.look(seen)
    assert await read(follower) == [1]


async def test_without_readers_nothing_is_looked_for(followers):
    assert await followers.look(7) is None


async def test_at_the_end_every_reader_gets_the_rest_and_stops(followers, embedded):
    await happen(embedded, *range(150))
    found: list[int] = []

    async def reading():
        found.extend([one.data["number"] async for one in followers.follow(READER, START)])

    task = asyncio.create_task(reading())
    followers.close()
    async with asyncio.timeout(60):
        await task
    assert found == list(range(150))
    assert not followers._by_tenant
    assert [one async for one in followers.follow(READER, START)], "what comes late gets what is there, and stops too"


async def test_a_follower_that_is_left_gives_its_place_back(followers, embedded):
    await happen(embedded, 1)
    following = followers.follow(READER, START)
    await anext(following)
    await following.aclose()
    assert not followers._by_tenant
