"""Limits in this process's memory: what embedded mode counts with.

Owns the counters of one process; knows numbers and keys only. No method awaits between looking and taking, so the
event loop makes each of them atomic. Memory is bounded by what is held and what was used lately: each new key looks
at the oldest two of its kind and drops those that would count the same when made anew.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.limits.backend import Budget, Denied, Granted, Held, Rate, Standing, Want
from amplifier_api_server.control_plane.limits.tallies import Budgets, Meter, Now, Places
from amplifier_api_server.tenants.quotas import Allow, Deny

_LOAD_TIMEOUT_SECONDS = 15.0  # of a seed: above the database's own, so that its error is the one that is told
_PRUNED_A_NEW_KEY = 2

_Tally = TypeVar("_Tally", Meter, Places, Budgets)


class MemoryLimits:
    """`LimitsBackend` for one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._meters: dict[str, Meter] = {}
        self._places: dict[str, Places] = {}
        self._budgets: dict[str, Budgets] = {}
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._released_while_loading: dict[str, set[str]] = {}

    async def take(self, wants: Sequence[Want]) -> Granted | Denied:
        now = self._now()
        if len(wants) == 1 and isinstance(want := wants[0], Rate):  # every request passes here
            meter = self._meter(want, now)
            decision = meter.decide(want, now)
            if isinstance(decision, Deny):
                return Denied(want.name, (meter.standing(want, now),), decision.retry_after_seconds)
            meter.commit(want)
            return Granted((meter.standing(want, now),), _NOTHING)
        if len({want.key for want in wants}) != len(wants):
            raise ValueError("the wants of one call have different keys")
        allowed: list[tuple[Want, Allow]] = []
        for want in wants:
            decision = self._decide(want, now)
            if isinstance(decision, Deny):
                return Denied(want.name, tuple(self._standing(one, now) for one in wants), decision.retry_after_seconds)
            allowed.append((want, decision))
        amounts: dict[str, int] = {}
        for want, allow in allowed:
            amounts.update(self._commit(want, allow, now))
        return Granted(tuple(self._standing(want, now) for want in wants), amounts)

    async def refund(self, rate: Rate) -> None:
        self._meter(rate, self._now()).refund(rate)

    async def release(self, key: str, holder: str) -> None:
        if key in self._loads:
            self._released_while_loading.setdefault(key, set()).add(holder)
        places = self._places.get(key)
        if places is not None:
            places.expiries.pop(holder, None)

    async def renew(self, key: str, holder: str, ttl_seconds: float) -> bool:
        held = self._places.get(key) or self._budgets.get(key)
        return held is not None and held.renew(holder, ttl_seconds, self._now())

    async def extend(self, budget: Budget) -> int:
        now = self._now()
        return self._budget(budget, now).extend(budget, now)

    async def give_back(self, key: str, holder: str, amount: int) -> None:
        budgets = self._budgets.get(key)
        if budgets is not None:
            budgets.give_back(holder, amount)

    async def settle(self, key: str, holder: str, spent: int) -> None:
        budgets = self._budgets.get(key)
        if budgets is not None:
            budgets.settle(holder, spent, self._now())

    async def seed(self, key: str, load: Callable[[], Awaitable[int | Sequence[str]]]) -> None:
        known = self._places.get(key) or self._budgets.get(key)
        if known is not None and known.is_seeded(self._now()):
            return
        task = self._loads.get(key)
        if task is None:
            # A task of its own: when the first caller goes away, those who wait with it must not fail.
            task = self._loads[key] = asyncio.create_task(self._load(key, load))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(task)

    async def _load(self, key: str, load: Callable[[], Awaitable[int | Sequence[str]]]) -> None:
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT_SECONDS):
                while True:
                    now, found = self._now(), await load()
                    if not isinstance(found, int) or now.day == self._now().day:  # what was read is of one day
                        break
            if isinstance(found, int):
                budgets = self._budgets.get(key) or self._new(self._budgets, key, Budgets(""), now)
                budgets.seed(now, found)
            else:
                places = self._places.get(key) or self._new(self._places, key, Places(""), now)
                places.seed(set(found) - self._released_while_loading.get(key, set()))
        finally:
            self._loads.pop(key, None)
            self._released_while_loading.pop(key, None)

    async def standing(self, want: Want) -> Standing:
        now = self._now()
        self._decide(want, now)
        return self._standing(want, now)

    async def snapshot(self) -> Mapping[str, int]:
        """Walks everything that is held, and drops what is over."""
        now = self._now()
        held: Counter[str] = Counter()
        for key, places in list(self._places.items()):
            if places.is_idle(now):
                del self._places[key]
            else:
                held[places.name] += len(places.expiries)
        for key, budgets in list(self._budgets.items()):
            if budgets.is_idle(now):
                del self._budgets[key]
            elif live := len(budgets.live(now)):
                held[budgets.name] += live
        return dict(held)

    def _now(self) -> Now:
        return Now(self._clock.monotonic(), self._clock.now().timestamp())

    def _decide(self, want: Want, now: Now) -> Allow | Deny:
        if isinstance(want, Rate):
            return self._meter(want, now).decide(want, now)
        if isinstance(want, Held):
            return self._place(want, now).decide(want, now)
        return self._budget(want, now).decide(want, now)

    def _commit(self, want: Want, allow: Allow, now: Now) -> Mapping[str, int]:
        """Make it count; what a budget's holder got."""
        if isinstance(want, Rate):
            self._meter(want, now).commit(want)
        elif isinstance(want, Held):
            self._place(want, now).commit(want, now)
        else:
            self._budget(want, now).commit(want, allow.amount, now)
            return {want.holder: allow.amount}
        return _NOTHING

    def _standing(self, want: Want, now: Now) -> Standing:
        if isinstance(want, Rate):
            return self._meter(want, now).standing(want, now)
        if isinstance(want, Held):
            return self._place(want, now).standing(want, now)
        return self._budget(want, now).standing(want, now)

    def _meter(self, want: Rate, now: Now) -> Meter:
        return self._meters.get(want.key) or self._new(self._meters, want.key, Meter(now), now)

    def _place(self, want: Held, now: Now) -> Places:
        places = self._places.get(want.key) or self._new(self._places, want.key, Places(want.name), now)
        places.name = want.name  # a seed knows the key alone
        return places

    def _budget(self, want: Budget, now: Now) -> Budgets:
        budgets = self._budgets.get(want.key) or self._new(self._budgets, want.key, Budgets(want.name), now)
        budgets.name = want.name
        return budgets

    def _new(self, kind: dict[str, _Tally], key: str, tally: _Tally, now: Now) -> _Tally:
        """Keep `tally`, and look at the oldest few of its kind: drop the idle, put the others behind."""
        for old in list(islice(kind, _PRUNED_A_NEW_KEY)):
            looked_at = kind.pop(old)
            if not looked_at.is_idle(now):
                kind[old] = looked_at
        kind[key] = tally
        return tally


_NOTHING: Mapping[str, int] = {}
