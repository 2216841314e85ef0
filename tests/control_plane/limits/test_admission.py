from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.gate import Gate
from amplifier_api_server.control_plane.limits import headers
from amplifier_api_server.control_plane.limits.admission import Admission, Admitted, Place
from amplifier_api_server.control_plane.limits.explanation import explain
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.settings import RateLimiting
from amplifier_api_server.tenants.errors import QuotaExceeded, Refused
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, TurnId
from amplifier_api_server.tenants.models import Usage
from amplifier_api_server.tenants.repository import usage
from amplifier_api_server.tenants.tiers import Limits
from tests.tenants.embedded import Embedded, embedded_in, session_id

LIMITS = Limits(requests_per_minute=10, tokens_per_day=10_000, concurrent_sessions=2, sessions_per_user=3, sandboxes=1)


@pytest.fixture
def admission(embedded: Embedded) -> Admission:
    return Admission(MemoryLimits(embedded.clock), embedded.settings, embedded.database, embedded.clock)


@pytest.fixture
async def caller(embedded: Embedded) -> Principal:
    return await embedded.principal(limits=LIMITS)


def place(caller: Principal, number: int, *, is_new: bool = True) -> Place:
    return Place(session_id(number), caller.member_id, is_new)


async def spend(embedded: Embedded, caller: Principal, source: str, total: int) -> None:
    now = embedded.clock.now()
    row = Usage(
        source=source,
        tenant_id=caller.tenant_id,
        member_id=caller.member_id,
        session_id="sess_1",
        turn_id=source,
        model="m",
        total_tokens=total,
        day=now.date(),
        recorded_at=now,
    )
    async with embedded.database.write() as db:
        await usage.append(db, caller.tenant_id, [row])


async def test_two_hundred_requests_at_once_on_a_limit_of_ten(admission: Admission, caller: Principal):
    answers = await asyncio.gather(*(admission.request(caller) for _ in range(200)), return_exceptions=True)
    refused = [one for one in answers if isinstance(one, Refused)]
    assert len(refused) == 190
    assert refused[0].stable_code == "rate_limited"
    assert refused[0].extra["limit"] == "requests_per_minute"
    assert refused[0].retry_after_seconds == pytest.approx(6)


async def test_requests_are_counted_for_each_member(admission: Admission, caller: Principal, embedded: Embedded):
    other = await embedded.principal(limits=LIMITS)
    for one in (caller, other):
        for _ in range(10):
            await admission.request(one)
        with pytest.raises(Refused):
            await admission.request(one)


async def test_another_key_of_the_same_member_shares_its_count(admission: Admission, caller: Principal):
    for _ in range(10):
        await admission.request(caller)
    with pytest.raises(Refused):
        await admission.request(replace(caller, credential_id="key_other"))


CEILINGS = replace(LIMITS, tenant_requests_per_minute=15, tenant_concurrent_sessions=3, tenant_sessions=4)


async def colleagues(embedded: Embedded, count: int) -> list[Principal]:
    """Members of one tenant."""
    first = await embedded.principal(limits=CEILINGS)
    return [first, *(replace(first, member_id=MemberId(f"mem_{number}")) for number in range(1, count))]


async def test_members_do_not_multiply_their_requests(admission: Admission, embedded: Embedded):
    everybody = await colleagues(embedded, 40)
    asks = (admission.request(one) for one in everybody for _ in range(10))
    answers = await asyncio.gather(*asks, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, Refused)]
    assert len(answers) - len(refused) == 15
    late = [one for one in refused if one.extra["limit"] == "tenant_requests_per_minute"]
    assert late
    assert (late[0].stable_code, late[0].retry_after_seconds) == ("rate_limited", pytest.approx(4))
    with pytest.raises(Refused, match="all members of the tenant"):
        await admission.has_request_left(everybody[-1])
    assert (await admission.backend.standing(admission._requests(everybody[-1])[0])).used == 0, "all or none"


async def test_members_do_not_multiply_their_sessions(admission: Admission, embedded: Embedded):
    everybody = await colleagues(embedded, 5)
    for number in range(3):
        await admission.take(
            everybody[number], place=Place(session_id(number), everybody[number].member_id, is_new=True)
        )
    with pytest.raises(Refused, match="tenant_concurrent_sessions") as refused:
        await admission.take(everybody[3], place=Place(session_id(3), everybody[3].member_id, is_new=True))
    assert refused.value.stable_code == "concurrent_sessions_exceeded"
    assert "holders" not in refused.value.extra, "they are others'"
    await admission.release_session(everybody[0].tenant_id, everybody[0].member_id, session_id(0))
    await admission.take(everybody[3], place=Place(session_id(3), everybody[3].member_id, is_new=True))
    await admission.release_session(everybody[1].tenant_id, everybody[1].member_id, session_id(1))
    with pytest.raises(Refused) as refused:
        await admission.take(everybody[4], place=Place(session_id(4), everybody[4].member_id, is_new=True))
    assert refused.value.stable_code == "tenant_sessions_exceeded"
    await admission.close_session(everybody[0].tenant_id, everybody[0].member_id, session_id(0))
    await admission.take(everybody[4], place=Place(session_id(4), everybody[4].member_id, is_new=True))


async def test_the_headers_are_of_the_limit_that_is_nearer_to_its_end(admission: Admission, embedded: Embedded):
    first, second, *_ = await colleagues(embedded, 2)
    assert (await admission.request(first)).name == "requests_per_minute"
    for _ in range(9):
        await admission.request(first)
    taken = await admission.take(second, is_request=True)
    assert dict(headers.of(taken.standings, 0))[b"x-ratelimit-remaining"] == b"4"
    explained = await explain(admission, second)
    [ceiling] = [one for one in explained.limits if one.name == "tenant_requests_per_minute"]
    assert (ceiling.scope, ceiling.limit, ceiling.used, ceiling.holders) == ("tenant", 15, 11, [])


async def test_asking_whether_a_request_is_left_counts_none(admission: Admission, caller: Principal):
    for _ in range(50):
        await admission.has_request_left(caller)
    for _ in range(10):
        await admission.request(caller)
    with pytest.raises(Refused) as refused:
        await admission.has_request_left(caller)
    assert refused.value.retry_after_seconds == pytest.approx(6)


async def test_a_request_that_was_counted_ahead_is_not_counted_again(admission: Admission, caller: Principal):
    await admission.request_ahead(caller)
    taken = await admission.take(caller, is_request=True, place=place(caller, 0))
    assert (taken.standings[0].name, taken.standings[0].remaining) == ("requests_per_minute", 9)
    assert (await admission.take(caller, is_request=True)).standings[0].remaining == 8, "only one is taken over"


async def test_a_request_that_was_counted_ahead_is_given_back_where_the_rest_is_refused(
    admission: Admission, caller: Principal
):
    for number in range(2):
        await admission.take(caller, place=place(caller, number))
    for _ in range(30):
        await admission.request_ahead(caller)
        with pytest.raises(Refused) as refused:
            await admission.take(caller, is_request=True, place=place(caller, 9))
        assert refused.value.stable_code == "concurrent_sessions_exceeded"
    assert (await admission.request(caller)).remaining == 9


async def test_an_import_counts_where_the_rest_is_refused_as_its_body_was_read(admission: Admission, caller: Principal):
    for number in range(2):
        await admission.take(caller, place=place(caller, number))
    for _ in range(10):
        await Gate(admission).enter(caller, OPERATIONS["importSession"])
        with pytest.raises(Refused, match="2 of 2") as refused:
            await admission.take(caller, is_request=True, place=place(caller, 9))
        assert refused.value.stable_code == "concurrent_sessions_exceeded"
    with pytest.raises(Refused) as refused:
        await Gate(admission).enter(caller, OPERATIONS["importSession"])
    assert refused.value.stable_code == "rate_limited"


async def test_a_request_that_was_counted_ahead_and_failed_before_its_service_took_it_counts(
    admission: Admission, caller: Principal
):
    for _ in range(10):
        await admission.request_ahead(caller)
    with pytest.raises(Refused):
        await admission.request_ahead(caller)


async def test_a_request_counted_ahead_in_one_call_is_not_taken_over_by_another(
    admission: Admission, caller: Principal
):
    async def ahead() -> None:
        await admission.request_ahead(caller)

    await asyncio.create_task(ahead())
    assert (await admission.take(caller, is_request=True)).standings[0].remaining == 8


async def test_a_session_takes_both_places_and_gives_them_back(admission: Admission, caller: Principal):
    for number in range(2):
        await admission.take(caller, is_request=True, place=place(caller, number))
    with pytest.raises(Refused, match="suspended after 30 minutes") as refused:
        await admission.take(caller, is_request=True, place=place(caller, 2))
    assert refused.value.stable_code == "concurrent_sessions_exceeded"
    assert refused.value.extra["holders"] == ["sess_0", "sess_1"]
    await admission.release_session(caller.tenant_id, caller.member_id, session_id(0))  # suspended
    await admission.take(caller, place=place(caller, 2))
    await admission.release_session(caller.tenant_id, caller.member_id, session_id(1))
    with pytest.raises(Refused, match="close one with DELETE") as refused:
        await admission.take(caller, place=place(caller, 3))
    assert refused.value.stable_code == "sessions_per_user_exceeded"
    await admission.close_session(caller.tenant_id, caller.member_id, session_id(0))
    await admission.take(caller, place=place(caller, 3))


async def test_a_refused_session_counts_no_request(admission: Admission, caller: Principal):
    for number in range(2):
        await admission.take(caller, place=place(caller, number))
    for _ in range(30):
        with pytest.raises(Refused):
            await admission.take(caller, is_request=True, place=place(caller, 9))
    assert (await admission.request(caller)).remaining == 9


async def test_open_sessions_are_read_from_the_database_first(
    admission: Admission, caller: Principal, embedded: Embedded
):
    for number, status in enumerate(["active", "suspended", "failed", "closed"]):
        await embedded.session(caller, f"sess_{number}", status)
    with pytest.raises(Refused) as refused:
        await admission.take(caller, place=place(caller, 9))
    assert refused.value.stable_code == "sessions_per_user_exceeded"
    await admission.close_session(caller.tenant_id, caller.member_id, session_id(0))
    await admission.take(caller, place=place(caller, 9))


async def test_waking_takes_the_active_place_alone(admission: Admission, caller: Principal):
    for number in range(3):
        await admission.take(caller, place=place(caller, number))
        await admission.release_session(caller.tenant_id, caller.member_id, session_id(number))
    for _ in range(3):
        await admission.take(caller, place=place(caller, 0, is_new=False))
    await admission.take(caller, place=place(caller, 1, is_new=False))
    with pytest.raises(Refused):
        await admission.take(caller, place=place(caller, 2, is_new=False))


async def test_a_turn_reserves_and_settles(admission: Admission, caller: Principal, embedded: Embedded):
    taken = await admission.take(caller, turn_id=TurnId("req_1"))
    assert taken.tokens == 4096
    await spend(embedded, caller, "call:1", 500)
    for _ in range(3):
        await admission.settle_turn(caller.tenant_id, TurnId("req_1"), 500)
    tokens = next(one for one in await admission.standings(caller) if one.name == "tokens_per_day")
    assert (tokens.used, tokens.reserved) == (500, 0)


async def test_what_the_ledger_says_of_today_is_spent(admission: Admission, caller: Principal, embedded: Embedded):
    await spend(embedded, caller, "call:1", 9_990)
    assert (await admission.take(caller, turn_id=TurnId("req_1"))).tokens == 10
    with pytest.raises(QuotaExceeded) as refused:
        await admission.take(caller, turn_id=TurnId("req_2"))
    assert refused.value.stable_code == "quota_exceeded"
    assert refused.value.retry_after_seconds == 12 * 3600
    assert "9990 used and 10 reserved" in refused.value.detail


async def test_a_restart_counts_a_spent_turn_once(caller: Principal, embedded: Embedded):
    """The turn's reservation was another process's; the ledger has what it used, and the seed reads it."""
    await spend(embedded, caller, "call:1", 700)
    again = Admission(MemoryLimits(embedded.clock), embedded.settings, embedded.database, embedded.clock)
    await again.settle_turn(caller.tenant_id, TurnId("req_old"), 700)
    await again.take(caller, turn_id=TurnId("req_new"))
    await again.settle_turn(caller.tenant_id, TurnId("req_old"), 700)
    tokens = next(one for one in await again.standings(caller) if one.name == "tokens_per_day")
    assert tokens.used == 700


async def test_the_budget_of_a_turn_can_be_extended_and_settled(admission: Admission, caller: Principal):
    await admission.take(caller, turn_id=TurnId("req_1"))
    budget = admission.budget_of(caller, TurnId("req_1"))
    assert await admission.backend.extend(budget) == 4096
    assert await admission.backend.extend(budget) == 10_000 - 2 * 4096
    assert await admission.backend.extend(budget) == 0
    await admission.backend.settle(budget.key, budget.holder, 6000)
    assert (await admission.take(caller, turn_id=TurnId("req_2"))).tokens == 4000


async def test_executing_takes_everything_or_nothing(admission: Admission, caller: Principal, embedded: Embedded):
    await spend(embedded, caller, "call:1", 10_000)
    for _ in range(20):
        with pytest.raises(QuotaExceeded):
            await admission.take(caller, is_request=True, place=place(caller, 1, is_new=False), turn_id=TurnId("req_1"))
    assert await admission.backend.snapshot() == {}
    assert (await admission.request(caller)).remaining == 9


async def test_a_crash_gives_everything_back(admission: Admission, caller: Principal, embedded: Embedded):
    await admission.take(caller, place=place(caller, 1, is_new=False), turn_id=TurnId("req_1"))
    await admission.sandbox(caller, RuntimeId("run_1"))
    embedded.clock.advance(61)
    assert await admission.backend.snapshot() == {}


async def test_renewing_keeps_what_lives_and_restores_what_was_lost(
    admission: Admission, caller: Principal, embedded: Embedded
):
    await admission.take(caller, place=place(caller, 1, is_new=False), turn_id=TurnId("req_1"))
    await admission.sandbox(caller, RuntimeId("run_1"))

    async def renew() -> None:
        await admission.renew(
            active=[(caller.tenant_id, caller.member_id, session_id(1))],
            turns=[(caller.tenant_id, TurnId("req_1"))],
            sandboxes=[(caller.tenant_id, RuntimeId("run_1"))],
        )

    held = {"concurrent_sessions": 1, "tenant_concurrent_sessions": 1, "tokens_per_day": 1, "sandboxes": 1}
    for _ in range(5):
        embedded.clock.advance(40)
        await renew()
        assert await admission.backend.snapshot() == held
    embedded.clock.advance(100)  # the server stood still
    await renew()
    assert await admission.backend.snapshot() == {
        name: count for name, count in held.items() if name != "tokens_per_day"
    }


async def test_sandboxes_are_the_tenants(admission: Admission, caller: Principal):
    await admission.sandbox(caller, RuntimeId("run_1"))
    with pytest.raises(Refused) as refused:
        await admission.sandbox(replace(caller, member_id="mem_other"), RuntimeId("run_2"))
    assert refused.value.stable_code == "sandboxes_exceeded"
    await admission.release_sandbox(caller.tenant_id, RuntimeId("run_1"))
    await admission.sandbox(caller, RuntimeId("run_2"))


async def test_switched_off_nothing_is_refused_and_everything_is_counted(tmp_path):
    async with embedded_in(tmp_path, rate_limiting=RateLimiting(enabled=False)) as embedded:
        admission = Admission(MemoryLimits(embedded.clock), embedded.settings, embedded.database, embedded.clock)
        caller = await embedded.principal(limits=Limits(1, 1, 1, 1, 1))
        for number in range(5):
            await admission.request(caller)
            await admission.take(caller, is_request=True, place=place(caller, number), turn_id=TurnId(f"req_{number}"))
            await admission.settle_turn(caller.tenant_id, TurnId(f"req_{number}"), 10)
        explained = await explain(admission, caller)
        assert not explained.enforced
        used = {one.name: (one.limit, one.used) for one in explained.limits}
        assert used["tokens_per_day"] == (None, 50)
        assert used["sessions_per_user"] == (None, 5)


async def test_it_explains_itself(admission: Admission, caller: Principal):
    await admission.take(caller, is_request=True, place=place(caller, 1), turn_id=TurnId("req_1"))
    for number in (2, 3):
        with pytest.raises(Refused) if number == 3 else _nothing():
            await admission.take(caller, place=place(caller, number))
    explained = await explain(admission, caller)
    found = {one.name: one for one in explained.limits}
    assert (found["requests_per_minute"].limit, found["requests_per_minute"].used) == (10, 1)
    assert (found["tokens_per_day"].reserved, found["tokens_per_day"].remaining) == (4096, 10_000 - 4096)
    assert found["tokens_per_day"].resets_at == datetime(2026, 3, 11, tzinfo=UTC)
    assert found["tokens_per_day"].holders == ["req_1"]
    assert found["concurrent_sessions"].holders == ["sess_1", "sess_2"]
    assert found["concurrent_sessions"].resets_at is None
    assert found["sessions_per_user"].remaining == 1
    assert found["sandboxes"].scope == "tenant"
    assert explained.last_refusal is not None
    assert explained.last_refusal.code == "concurrent_sessions_exceeded"
    assert explained.model_dump_json()


async def test_explaining_leaves_nothing_held(admission: Admission, caller: Principal):
    await explain(admission, caller)
    assert await admission.backend.snapshot() == {}
    assert (await explain(admission, caller)).last_refusal is None


async def test_a_refusal_carries_what_headers_are_made_of(admission: Admission, caller: Principal, embedded: Embedded):
    now = embedded.clock.now().timestamp()
    taken: Admitted = await admission.take(caller, is_request=True, turn_id=TurnId("req_1"))
    found = dict(headers.of(taken.standings[:1], now))
    assert found[b"x-ratelimit-limit"] == b"10"
    assert found[b"x-ratelimit-remaining"] == b"9"
    assert int(found[b"x-ratelimit-reset"]) == int(now) + 6
    assert found[b"ratelimit-policy"] == b'"requests";q=10;w=60'
    assert found[b"ratelimit"] == b'"requests";r=9;t=6'
    tokens = dict(headers.of(taken.standings[1:], now))
    assert tokens[b"x-ratelimit-limit-tokens"] == b"10000"
    assert tokens[b"x-ratelimit-remaining-tokens"] == b"5904"
    assert tokens[b"x-ratelimit-reset-tokens"] == b"43200s"
    for _ in range(9):
        await admission.request(caller)
    with pytest.raises(Refused) as refused:
        await admission.request(caller)
    assert dict(headers.of(refused.value.standings, now))[b"x-ratelimit-remaining"] == b"0"


class _nothing:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
