"""What every limits backend does. A test module for a backend subclasses this and gives a `backend` fixture on `clock`."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.limits.backend import Budget, Denied, Granted, Held, LimitsBackend, Rate
from tests.tenants.embedded import TestClock

DAY = 86_400
JUMPS = [0.0, -1.0, 3600.0, -3600.0, 2.0 * DAY, -2.0 * DAY, 400.0 * DAY, -400.0 * DAY]


def rate(limit: int | None = 10, key: str = "r") -> Rate:
    return Rate(key, "requests_per_minute", limit)


def held(holder: str, limit: int | None = 2, ttl: float | None = 60, key: str = "h") -> Held:
    return Held(key, "concurrent_sessions", limit, holder, ttl)


def budget(holder: str, limit: int | None = 100, amount: int = 30, at_least: int = 1, key: str = "b") -> Budget:
    return Budget(key, "tokens_per_day", limit, holder, amount, at_least, 60)


class LimitsBackendSuite:
    @pytest.fixture
    def clock(self) -> TestClock:
        return TestClock()

    # Rates.

    async def test_two_hundred_at_once_on_a_limit_of_ten_let_exactly_ten_through(self, backend: LimitsBackend):
        answers = await asyncio.gather(*(backend.take((rate(),)) for _ in range(200)))
        assert sum(isinstance(one, Granted) for one in answers) == 10

    async def test_places_and_tokens_race_the_same_way(self, backend: LimitsBackend):
        wants = [(rate(1000), held(str(n), 10), budget(str(n), 1000, 100)) for n in range(200)]
        answers = await asyncio.gather(*(backend.take(one) for one in wants))
        assert sum(isinstance(one, Granted) for one in answers) == 10
        assert (await backend.standing(rate(1000))).used == 10

    async def test_a_rate_counts_down_and_fills_up_again(self, backend: LimitsBackend, clock: TestClock):
        first = await backend.take((rate(),))
        assert isinstance(first, Granted)
        assert (first.standings[0].limit, first.standings[0].used, first.standings[0].remaining) == (10, 1, 9)
        assert first.standings[0].resets_at == pytest.approx(clock.now().timestamp() + 6)
        for _ in range(9):
            await backend.take((rate(),))
        denied = await backend.take((rate(),))
        assert isinstance(denied, Denied)
        assert denied.retry_after_seconds == pytest.approx(6)
        clock.advance(6.01)
        assert isinstance(await backend.take((rate(),)), Granted)
        assert isinstance(await backend.take((rate(),)), Denied)
        clock.advance(600)
        assert (await backend.standing(rate())).remaining == 10

    async def test_an_unlimited_rate_passes(self, backend: LimitsBackend):
        taken = await backend.take((rate(None),))
        assert isinstance(taken, Granted)
        assert taken.standings[0].remaining is None

    async def test_a_limit_that_was_changed_holds_from_the_next_request(self, backend: LimitsBackend):
        for _ in range(10):
            await backend.take((rate(10),))
        assert isinstance(await backend.take((rate(5),)), Denied)
        assert isinstance(await backend.take((rate(11),)), Granted)

    # All or nothing.

    async def test_a_refused_want_takes_nothing_of_the_others(self, backend: LimitsBackend):
        await backend.take((held("a"), held("b", key="h2")))
        await backend.take((held("c"),))
        denied = await backend.take((rate(), held("d"), budget("t")))
        assert isinstance(denied, Denied)
        assert denied.name == "concurrent_sessions"
        assert [one.used for one in denied.standings] == [0, 2, 0]
        assert (await backend.standing(budget("t"))).reserved == 0

    async def test_two_wants_of_one_key_in_a_call_are_a_mistake(self, backend: LimitsBackend):
        with pytest.raises(ValueError, match="different keys"):
            await backend.take((held("a"), held("b")))

    # Places.

    async def test_a_place_is_one_however_often_its_holder_takes_it(self, backend: LimitsBackend):
        for _ in range(3):
            assert isinstance(await backend.take((held("a", 1),)), Granted)
        assert isinstance(await backend.take((held("b", 1),)), Denied)
        await backend.release("h", "a")
        await backend.release("h", "a")
        assert isinstance(await backend.take((held("b", 1),)), Granted)

    async def test_a_lease_ends_by_itself_unless_it_is_renewed(self, backend: LimitsBackend, clock: TestClock):
        await backend.take((held("a"),))
        await backend.take((held("b"),))
        clock.advance(40)
        assert await backend.renew("h", "a", 60)
        clock.advance(40)
        assert (await backend.standing(held(""))).holders == ("a",)
        assert not await backend.renew("h", "b", 60)
        clock.advance(61)
        assert not await backend.renew("h", "a", 60)
        assert await backend.snapshot() == {}

    async def test_a_place_without_expiry_stays(self, backend: LimitsBackend, clock: TestClock):
        await backend.take((held("a", 1, None),))
        clock.advance(400 * DAY)
        assert isinstance(await backend.take((held("b", 1, None),)), Denied)
        assert await backend.renew("h", "a", 1)
        clock.advance(400 * DAY)
        assert isinstance(await backend.take((held("b", 1, None),)), Denied)

    # Budgets.

    async def test_a_reservation_is_what_is_left_and_settling_gives_the_rest_back(self, backend: LimitsBackend):
        granted = [await backend.take((budget(str(n)),)) for n in range(4)]
        assert [one.amounts[str(n)] for n, one in enumerate(granted) if isinstance(one, Granted)] == [30, 30, 30, 10]
        assert isinstance(await backend.take((budget("4"),)), Denied)
        await backend.settle("b", "0", 7)
        standing = await backend.standing(budget(""))
        assert (standing.used, standing.reserved, standing.remaining) == (7, 70, 23)

    async def test_what_is_given_back_is_free_for_others(self, backend: LimitsBackend):
        await backend.take((budget("t", amount=100),))
        await backend.give_back("b", "t", 60)
        await backend.give_back("b", "ghost", 60)
        assert (await backend.standing(budget(""))).reserved == 40
        assert await backend.extend(budget("u", amount=100)) == 60
        await backend.give_back("b", "t", 1000)
        assert (await backend.standing(budget(""))).reserved == 60

    async def test_settling_counts_once(self, backend: LimitsBackend, clock: TestClock):
        await backend.take((budget("t"),))
        for spent in (7, 7, 900):
            await backend.settle("b", "t", spent)
        assert (await backend.standing(budget(""))).used == 7
        assert not await backend.renew("b", "t", 60)
        assert await backend.extend(budget("t")) == 0
        assert isinstance(await backend.take((budget("t"),)), Denied)

    async def test_what_an_expired_reservation_used_counts_all_the_same(self, backend: LimitsBackend, clock: TestClock):
        await backend.take((budget("t"),))
        clock.advance(61)
        assert (await backend.standing(budget(""))).reserved == 0
        await backend.settle("b", "t", 25)
        assert (await backend.standing(budget(""))).used == 25

    async def test_settling_what_was_never_reserved_changes_nothing(self, backend: LimitsBackend):
        await backend.settle("b", "ghost", 50)
        await backend.take((budget("t"),))
        await backend.settle("b", "ghost", 50)
        assert (await backend.standing(budget(""))).used == 0

    async def test_a_turn_over_midnight_counts_for_the_day_it_began_in(self, backend: LimitsBackend, clock: TestClock):
        clock.advance(DAY / 2 - 10)  # ten seconds before midnight
        denied_until = await backend.standing(budget(""))
        assert denied_until.resets_at == pytest.approx(clock.now().timestamp() + 10)
        await backend.take((budget("t", amount=100),))
        clock.advance(20)
        assert (await backend.standing(budget(""))).remaining == 100
        await backend.settle("b", "t", 90)
        assert (await backend.standing(budget(""))).used == 0

    async def test_a_refusal_says_that_midnight_helps(self, backend: LimitsBackend):
        await backend.take((budget("t", amount=100),))
        denied = await backend.take((budget("u"),))
        assert isinstance(denied, Denied)
        assert denied.retry_after_seconds == DAY / 2  # the clock says noon

    async def test_extending_adds_what_is_left(self, backend: LimitsBackend, clock: TestClock):
        await backend.take((budget("t"),))
        assert await backend.extend(budget("t", amount=50)) == 50
        assert await backend.extend(budget("t", amount=50)) == 20
        assert await backend.extend(budget("t", amount=50)) == 0
        clock.advance(61)
        assert await backend.extend(budget("t", amount=5)) == 5  # begun anew, with that alone
        assert (await backend.standing(budget(""))).reserved == 5

    async def test_an_unlimited_budget_counts(self, backend: LimitsBackend):
        await backend.take((budget("t", None),))
        await backend.settle("b", "t", 12345)
        standing = await backend.standing(budget("", None))
        assert (standing.used, standing.remaining, standing.limit) == (12345, None, None)

    # Seeds.

    async def test_a_seed_is_loaded_once_by_the_first_who_asks(self, backend: LimitsBackend):
        calls, go = 0, asyncio.Event()

        async def load() -> int:
            nonlocal calls
            calls += 1
            await go.wait()
            return 40

        waiting = [asyncio.create_task(backend.seed("b", load)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # the first one's going away is not the others' trouble
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await backend.seed("b", load)
        assert calls == 1
        assert (await backend.standing(budget(""))).used == 40

    async def test_a_failed_seed_raises_and_is_tried_again(self, backend: LimitsBackend):
        async def fails() -> int:
            raise OSError("no database")

        async def works() -> int:
            return 3

        with pytest.raises(OSError, match="no database"):
            await backend.seed("b", fails)
        await backend.seed("b", works)
        assert (await backend.standing(budget(""))).used == 3

    async def test_a_holder_released_while_the_record_is_read_does_not_come_back(self, backend: LimitsBackend):
        go = asyncio.Event()

        async def load() -> list[str]:
            await go.wait()
            return ["closed", "open"]

        seeding = asyncio.create_task(backend.seed("h", load))
        await asyncio.sleep(0)
        await backend.release("h", "closed")
        go.set()
        await seeding
        assert (await backend.standing(held("", 5))).holders == ("open",)

    # The machine's clock is set, forward or back, while no time passes.

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
    @given(st.lists(st.tuples(st.floats(0, 90), st.sampled_from(JUMPS)), max_size=30))
    def test_rates_and_leases_are_the_same_whatever_the_clock_is_set_to(self, make_backend, steps):
        async def play(jumps: bool) -> list[object]:
            clock, told = TestClock(), []
            backend: LimitsBackend = make_backend(clock)
            for number, (seconds, jump) in enumerate(steps):
                clock.advance(seconds)
                if jumps:
                    clock.jump(jump)
                for _ in range(4):
                    taken = await backend.take((rate(),))
                    told.append(taken.retry_after_seconds if isinstance(taken, Denied) else None)
                    resets_at = (await backend.standing(rate())).resets_at - clock.now().timestamp()
                    told.append(round(resets_at, 3))
                told.append(isinstance(await backend.take((held(str(number)),)), Granted))
                told.append(await backend.renew("h", str(number - 1), 60))
                told.append((await backend.standing(held(""))).holders)
            return told

        assert asyncio.run(play(True)) == asyncio.run(play(False))

    async def test_who_used_up_the_minute_waits_six_seconds_though_the_clock_went_back(
        self, backend: LimitsBackend, clock: TestClock
    ):
        for _ in range(10):
            await backend.take((rate(),))
        clock.jump(-3600)
        assert isinstance(await backend.take((rate(),)), Denied)
        clock.advance(6.01)
        assert isinstance(await backend.take((rate(),)), Granted)

    @pytest.mark.parametrize("jump", [one for one in JUMPS if abs(one) >= DAY])
    async def test_a_spent_day_stays_spent_when_the_clock_leaves_it_and_comes_back(
        self, backend: LimitsBackend, clock: TestClock, jump: float
    ):
        ledger = {clock.now().date(): 0}

        async def load() -> int:
            return ledger.get(clock.now().date(), 0)

        async def take(turn: str, spent: int) -> bool:
            await backend.seed("b", load)
            taken = await backend.take((budget(turn, amount=100),))
            if isinstance(taken, Granted):
                ledger[clock.now().date()] = ledger.get(clock.now().date(), 0) + spent
                await backend.settle("b", turn, spent)
            return isinstance(taken, Granted)

        assert await take("a", 100)
        running = await backend.take((budget("running", None),))
        assert isinstance(running, Granted)
        clock.jump(jump)
        assert await take("b", 100)  # another day has a budget of its own
        assert not await take("c", 1)
        await backend.snapshot()
        clock.jump(-jump)
        assert not await take("d", 1)
        await backend.settle("b", "running", 7)
        assert (await backend.standing(budget(""))).used == 107
        clock.jump(jump)
        assert not await take("e", 1)

    async def test_a_day_that_is_not_known_here_is_read_from_the_ledger(self, backend: LimitsBackend, clock: TestClock):
        ledger = {clock.now().date(): 100}
        asked = []

        async def load() -> int:
            asked.append(clock.now().date())
            return ledger.get(clock.now().date(), 0)

        clock.jump(2 * DAY)  # the process starts while the clock is wrong
        await backend.seed("b", load)
        assert isinstance(await backend.take((budget("a", amount=100),)), Granted)
        clock.jump(-2 * DAY)
        await backend.seed("b", load)
        assert isinstance(await backend.take((budget("b", amount=1),)), Denied)
        await backend.seed("b", load)
        assert len(asked) == 2

    async def test_what_is_read_while_midnight_passes_is_read_again_for_the_new_day(
        self, backend: LimitsBackend, clock: TestClock
    ):
        clock.advance(DAY / 2 - 1)
        asked = []

        async def load() -> int:
            asked.append(clock.now().date())
            if len(asked) == 1:
                clock.advance(2)
                return 100
            return 5

        await backend.seed("b", load)
        assert (await backend.standing(budget(""))).used == 5

    # Bookkeeping.

    async def test_a_snapshot_says_what_is_held(self, backend: LimitsBackend):
        await backend.take((held("a"), budget("t")))
        await backend.take((held("b"), rate()))
        assert await backend.snapshot() == {"concurrent_sessions": 2, "tokens_per_day": 1}
        await backend.release("h", "a")
        await backend.release("h", "b")
        await backend.settle("b", "t", 3)
        assert await backend.snapshot() == {}

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["take", "settle", "extend", "wait"]), st.integers(0, 5), st.integers(1, 60)),
            max_size=60,
        )
    )
    def test_no_day_is_ever_overdrawn_by_turns_that_spend_what_they_hold(self, make_backend, steps):
        async def play() -> None:
            clock = TestClock()
            backend: LimitsBackend = make_backend(clock)
            holds: dict[str, int] = {}
            spent, number = 0, 0
            for verb, which, amount in steps:
                holder = f"{which}-{number}"
                if verb == "take":
                    taken = await backend.take((budget(holder, 100, amount),))
                    if isinstance(taken, Granted):
                        holds[holder] = taken.amounts[holder]
                elif verb == "extend" and holder in holds:
                    holds[holder] += await backend.extend(budget(holder, 100, amount))
                elif verb == "settle" and holder in holds:
                    used = min(amount, holds.pop(holder))
                    spent += used
                    await backend.settle("b", holder, used)
                elif verb == "wait":
                    number += 1  # later turns are others
                    for one in holds:
                        await backend.renew("b", one, 60)
                standing = await backend.standing(budget("", 100))
                assert standing.used == spent
                assert standing.used + standing.reserved <= 100
                assert standing.reserved == sum(holds.values())

        asyncio.run(play())
