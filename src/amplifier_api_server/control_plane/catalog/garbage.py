"""Trees that nothing needs any more, deleted; and those that are in use by what has no row yet, held.

Owns what "needed" means: a collection's row, a session that is not closed, or an installation that goes on here. Invariant: a
tree that is held, and was there when that was asked, stays there until it is let go of, and after that while a row needs it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta

import structlog

from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants.repository import collections, sessions

log = structlog.get_logger(__name__)

_SWEEP_EVERY_SECONDS = 300.0
_GARBAGE_AGE = timedelta(minutes=15)  # far longer than a session takes to be made


class Garbage:
    """The one that deletes trees."""

    def __init__(self, trees: Trees, database: Database, clock: Clock) -> None:
        self._trees = trees
        self._database = database
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._held: Counter[str] = Counter()
        self._dropping: list[set[str]] = []  # what each drop under way would delete
        self._swept_at = clock.monotonic()

    def hold(self, tree: str) -> bool:
        """Keep it from being deleted; whether it is there."""
        self._held[tree] += 1
        for candidates in self._dropping:
            candidates.discard(tree)
        return self._trees.has(tree)

    def let_go(self, trees: Iterable[str]) -> None:
        self._held.subtract(trees)
        self._held += Counter()  # forgets those at 0

    async def drop(self, trees: Sequence[str]) -> int:
        """Delete those of these trees that nothing needs; how many."""
        candidates = {tree for tree in trees if tree not in self._held}
        self._dropping.append(candidates)
        try:
            # Whoever holds one from here on may have its row written, and let go, before this read is back.
            candidates -= await self._needed()
            aside = [self._trees.set_aside(tree) for tree in candidates]
        finally:
            self._dropping = [one for one in self._dropping if one is not candidates]
        gone = [folder for folder in aside if folder is not None]
        for folder in gone:
            await asyncio.to_thread(self._trees.delete, folder)
        return len(gone)

    async def collect(self, *, min_age: timedelta = timedelta()) -> int:
        """Delete what nothing needs, and nobody touched since `min_age`; how many."""
        return await self.drop(await asyncio.to_thread(self._trees.unchanged_for, min_age.total_seconds()))

    async def sweep(self) -> None:
        """Now and then, what was replaced, removed, or last used by a session that is closed."""
        now = self._clock.monotonic()
        if now - self._swept_at >= _SWEEP_EVERY_SECONDS:
            self._swept_at = now
            if not self._steadiness.is_given():
                return
            deleted = await self.collect(min_age=_GARBAGE_AGE)
            if deleted:
                log.info("trees of collections deleted", count=deleted)

    async def touch(self, trees: Iterable[str]) -> None:
        """They are needed no more, but by whoever is making a session of them right now: their age begins anew."""
        for tree in trees:
            await asyncio.to_thread(self._trees.touch, tree)

    async def _needed(self) -> set[str]:
        async with self._database.read() as db:
            needed = await collections.content_hashes_of_all_tenants(db)
            return needed | await sessions.content_hashes_in_use_of_all_tenants(db)
