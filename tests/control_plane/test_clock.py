"""The machine's clock is set, either way: nothing is lost, done twice or kept waiting for it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from amplifier_api_server.control_plane.clock import Steadiness
from amplifier_api_server.control_plane.sessions.sweeps import Sweeps
from amplifier_api_server.tenants.ids import SessionId
from amplifier_api_server.tenants.repository import sessions
from tests.tenants.embedded import Embedded, TestClock, embedded

__all__ = ["embedded"]

HOUR, DAY = 3600.0, 86_400.0


def test_a_clock_that_was_set_is_believed_after_an_hour():
    clock = TestClock()
    steadiness = Steadiness(clock)
    assert steadiness.is_given()
    clock.advance(30 * DAY)
    assert steadiness.is_given(), "time passed"
    for seconds in (DAY, -DAY, 61, -61):
        clock.jump(seconds)
        assert not steadiness.is_given()
        clock.advance(HOUR - 1)
        assert not steadiness.is_given()
        clock.advance(1)
        assert steadiness.is_given()
    clock.jump(59)
    assert steadiness.is_given(), "as NTP may do"


class Ended:
    """Stands for what closes and suspends: says which."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def close(self, _tenant: str, session_id: str, _by: str) -> None:
        self.ids.append(session_id)

    async def suspend(self, _tenant: str, session_id: str) -> bool:
        self.ids.append(session_id)
        return False


def swept(embedded: Embedded, ended: Any) -> Sweeps:
    nobody: Any = None
    return Sweeps(
        settings=embedded.settings,
        database=embedded.database,
        sessions=ended,
        residency=ended,
        live=nobody,
        endings=nobody,
        fleet=nobody,
        admission=nobody,
        clock=embedded.clock,
    )


async def test_no_session_is_closed_for_an_age_that_the_clock_was_set_to(embedded: Embedded):
    ended = Ended()
    sweeps = swept(embedded, ended)
    await embedded.session(await embedded.principal(), "sess_a")
    embedded.clock.jump(400 * DAY)
    await sweeps.close_aged()
    embedded.clock.jump(-400 * DAY)
    await sweeps.close_aged()
    assert ended.ids == [], "it was set back"
    embedded.clock.advance(embedded.settings.sessions.max_duration.total_seconds() + 1)
    await sweeps.close_aged()
    assert ended.ids == ["sess_a"], "it is old indeed"


async def test_a_session_is_idle_as_long_as_ever_after_the_clock_was_set_back(embedded: Embedded):
    ended = Ended()
    sweeps = swept(embedded, ended)
    principal = await embedded.principal()
    await embedded.session(principal, "sess_a")
    embedded.clock.jump(-400 * DAY)
    await sweeps.close_aged()
    embedded.clock.advance(embedded.settings.sessions.idle_timeout.total_seconds() - 1)
    await sweeps.suspend_idle()
    assert ended.ids == []
    embedded.clock.advance(2)
    await sweeps.suspend_idle()
    assert ended.ids == ["sess_a"]
    async with embedded.database.read() as db:
        row = await sessions.find(db, principal.tenant_id, SessionId("sess_a"))
    assert row is not None
    assert row.last_active_at <= embedded.clock.now()


@pytest.mark.parametrize("jump", [timedelta(days=30), timedelta(days=-30)])
async def test_leases_are_renewed_by_the_time_that_passes(embedded: Embedded, jump: timedelta):
    class Counted:
        renewed = 0

        async def renew(self, **_: Any) -> None:
            self.renewed += 1

        def __getattr__(self, _: str) -> Any:
            return {}

    admission: Any = Counted()
    sweeps = swept(embedded, Ended())
    sweeps._admission, sweeps._fleet = admission, admission
    sweeps._live = type("None_", (), {"all": staticmethod(list)})()  # type: ignore[assignment]
    embedded.clock.jump(jump.total_seconds())
    await sweeps.renew_leases()
    assert admission.renewed == 0
    embedded.clock.advance(embedded.settings.rate_limiting.lease_ttl.total_seconds())
    await sweeps.renew_leases()
    assert admission.renewed == 1
