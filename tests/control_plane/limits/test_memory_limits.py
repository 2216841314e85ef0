from __future__ import annotations

from collections.abc import Callable

import pytest

from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from tests.control_plane.limits.backend_suite import LimitsBackendSuite, budget, held, rate
from tests.tenants.embedded import TestClock


class TestMemoryLimits(LimitsBackendSuite):
    @pytest.fixture
    def backend(self, clock: TestClock) -> MemoryLimits:
        return MemoryLimits(clock)

    @pytest.fixture
    def make_backend(self) -> Callable[[TestClock], MemoryLimits]:
        return MemoryLimits


async def test_what_is_idle_is_forgotten():
    clock = TestClock()
    backend = MemoryLimits(clock)
    for number in range(3000):
        await backend.take((rate(key=f"r{number}"), held("a", key=f"h{number}"), budget("t", key=f"b{number}")))
        await backend.release(f"h{number}", "a")
        await backend.settle(f"b{number}", "t", 1)
        clock.advance(120)
    assert len(backend._meters) < 10
    assert len(backend._places) < 10
    # Spending is kept for a day, of a turn each 120 seconds; two are looked at for each new one.
    assert len(backend._budgets) < 2 * 720 + 60


async def test_what_still_counts_is_not_forgotten():
    clock = TestClock()
    backend = MemoryLimits(clock)
    for _ in range(10):
        await backend.take((rate(key="busy"),))
    await backend.take((held("a", key="busy"),))
    for number in range(100):
        await backend.take((rate(key=f"r{number}"),))
        await backend.take((held("a", key=f"h{number}"),))
    assert (await backend.standing(rate(key="busy"))).remaining == 0
    assert (await backend.standing(held("", key="busy"))).used == 1
