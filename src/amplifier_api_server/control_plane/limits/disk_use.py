"""What each tenant keeps on the disk, against its share: `disk_bytes` and `disk_files`.

Owns the sum, of sessions' files at rest and in sandboxes, trees of collections (each once for a tenant), profiles,
transcripts of open sessions, and what is on its way (uploads, forks, installations). Refuses to walk: sessions are
measured when they come to rest, sandboxes by their watch, a tree once. Invariants: what is on its way counts from before it
is written until it is counted as kept; what is added in one process is never taken for less than it was admitted as.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import structlog

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.tenants.errors import InsufficientStorage
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId
from amplifier_api_server.tenants.repository import disk
from amplifier_api_server.tenants.repository.disk import SessionsKeep
from amplifier_api_server.tenants.tiers import Limits

log = structlog.get_logger(__name__)

BYTES, FILES = "disk_bytes", "disk_files"
_FRESH_SECONDS = 2.0  # what rows say is read again after this, and after every change that is made here
_KNOWN_SECONDS = 600.0  # a tenant that nobody asked about for so long is forgotten
_ROWS = 100  # sessions that are measured in one sweep
_MARGIN = 10  # a tenth over its share a tenant may still execute, so that what runs can delete files
_NEVER = float("inf")


class Sandboxes(Protocol):
    """Who measures the folders."""

    async def size(self, tenant_id: TenantId, session_id: SessionId) -> Size | None:
        """Of a session at rest; None for one that is not."""

    def held(self, runtime_id: RuntimeId) -> Size | None:
        """Of a sandbox's workspace; None where that is not measured since something came to it."""


class KnowsTrees(Protocol):
    """Who keeps the trees of collections."""

    def size(self, tree: str) -> Size:
        """Blocks where it is asked for the first time."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant may keep. None is unlimited."""

    bytes: int | None
    files: int | None

    @classmethod
    def of(cls, limits: Limits) -> Share:
        return cls(limits.disk_bytes, limits.disk_files)

    def exceeded(self, used: Size, *, margin: int = 0) -> str:
        """The name of the limit that `used` is over, with a `margin` of hundredths of the limit added to it."""
        for name, limit, held in ((BYTES, self.bytes, used.bytes), (FILES, self.files, used.entries)):
            if limit is not None and held > limit + limit * margin // 100:
                return name
        return ""


@dataclass(slots=True)
class _Known:
    """Of one tenant. Times are a monotonic clock's."""

    share: Share
    asked_at: float
    read_at: float = -_NEVER
    sessions: SessionsKeep = field(default_factory=SessionsKeep)
    trees: Size = field(default_factory=Size)
    profiles: int = 0
    coming: dict[object, Size] = field(default_factory=dict)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)


class DiskUse:
    """All tenants'."""

    def __init__(
        self,
        database: Database,
        trees: KnowsTrees,
        *,
        running: Callable[[], Mapping[RuntimeId, TenantId]],
        sandboxes: Sandboxes,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self._database = database
        self._trees = trees
        self._running = running
        self._sandboxes = sandboxes
        self._now = now
        self._known: dict[TenantId, _Known] = {}

    # Asking.

    async def standings(self, tenant_id: TenantId, limits: Limits) -> tuple[Standing, Standing]:
        """How the tenant's two limits stand."""
        known = await self._read(tenant_id, Share.of(limits))
        used, coming = self._used(tenant_id, known), _sum(known.coming.values())
        kept = Size(used.bytes - coming.bytes, used.entries - coming.entries)
        return (
            _standing(BYTES, known.share.bytes, kept.bytes, coming.bytes),
            _standing(FILES, known.share.files, kept.entries, coming.entries),
        )

    async def require(self, tenant_id: TenantId, limits: Limits, more: Size, *, may_free: bool = False) -> None:
        """Raise InsufficientStorage (`disk_quota_exceeded`) where the tenant would keep more than its share with so much
        more. `may_free`: what is asked for may as well delete something, and is let pass a little over it.
        """
        known = await self._read(tenant_id, Share.of(limits))
        self._require(tenant_id, known, more, margin=_MARGIN if may_free else 0)

    def require_now(self, tenant_id: TenantId, more: Size) -> None:
        """The same from any thread, by what was read when the tenant was last asked about."""
        known = self._known.get(tenant_id)
        if known is not None:
            self._require(tenant_id, known, more, margin=0)

    def _require(self, tenant_id: TenantId, known: _Known, more: Size, *, margin: int) -> None:
        used = self._used(tenant_id, known)
        name = known.share.exceeded(_sum([used, more]), margin=margin)
        full = known.share.exceeded(_sum([used, Size(1, 1)]), margin=margin)
        if name or full:
            raise self._error(tenant_id, known, used, more, name or full)

    def _error(self, tenant_id: TenantId, known: _Known, used: Size, more: Size, name: str) -> InsufficientStorage:
        limit, held, wanted = (
            (known.share.bytes, used.bytes, more.bytes)
            if name == BYTES
            else (known.share.files, used.entries, more.entries)
        )
        and_more = f", and this would be {wanted:,} more" if wanted else ""
        return InsufficientStorage(
            f"the tenant keeps {held:,} of {limit:,} {name}{and_more}: {self._parts(tenant_id, known, name)}; close"
            " sessions (DELETE /v1/sessions/{id}) or delete files in them, remove collections or profiles",
            code="disk_quota_exceeded",
            limit=name,
            limit_value=limit,
            used=held,
        )

    def _parts(self, tenant_id: TenantId, known: _Known, name: str) -> str:
        awake = self._awake(tenant_id, known)
        parts = {
            "sessions at rest": Size(known.sessions.resting_bytes, known.sessions.resting_files),
            "open sessions": awake,
            "collections": known.trees,
            "profiles and transcripts": Size(known.profiles + known.sessions.transcript_bytes, 0),
            "on their way": _sum(known.coming.values()),
        }
        numbers = {part: size.bytes if name == BYTES else size.entries for part, size in parts.items()}
        return ", ".join(f"{number:,} in {part}" for part, number in numbers.items() if number)

    def is_over(self, runtime_id: RuntimeId, more_bytes: int) -> bool:
        """Whether what runs in this sandbox may not grow now, if it has so much more than was measured. From any thread."""
        tenant_id = self._running().get(runtime_id)
        known = self._known.get(tenant_id) if tenant_id is not None else None
        if tenant_id is None or known is None:
            return False
        return bool(known.share.exceeded(_sum([self._used(tenant_id, known), Size(more_bytes)])))

    # Telling.

    @contextmanager
    def coming(self, tenant_id: TenantId, key: object, size: Size) -> Iterator[None]:
        """Count this much more while the block runs; what it left is read from the rows after it."""
        self.expect(tenant_id, key, size)
        try:
            yield
        finally:
            self.settle(tenant_id, key)

    def expect(self, tenant_id: TenantId, key: object, size: Size) -> None:
        """Count this much more for `key`, beside what was expected for it before. From any thread."""
        known = self._known.setdefault(tenant_id, _Known(Share(None, None), self._now()))
        known.coming[key] = _sum([known.coming.get(key, Size()), size])

    def settle(self, tenant_id: TenantId, key: object) -> None:
        """It is kept now, or it is gone: the rows say which."""
        known = self._known.get(tenant_id)
        if known is not None:
            known.read_at = -_NEVER
            known.coming.pop(key, None)

    async def rests(self, tenant_id: TenantId, session_id: SessionId, size: Size) -> None:
        """A session's files are at rest, and take so much. Commits."""
        async with self._database.write() as db:
            await disk.set_measured(db, tenant_id, session_id, size.bytes, size.entries)
        self.changed(tenant_id)

    def changed(self, tenant_id: TenantId) -> None:
        """What rows say of it is another thing now."""
        if (known := self._known.get(tenant_id)) is not None:
            known.read_at = -_NEVER

    # Knowing.

    async def _read(self, tenant_id: TenantId, share: Share | None = None) -> _Known:
        now = self._now()
        known = self._known.setdefault(tenant_id, _Known(Share(None, None), now))
        if share is not None:
            known.share, known.asked_at = share, now
        async with known.reading:
            if now - known.read_at < _FRESH_SECONDS:
                return known
            known.read_at = now  # what is changed from here on is read another time
            try:
                async with self._database.read() as db:
                    sessions = await disk.of_sessions(db, tenant_id)
                    profiles = await disk.of_profiles(db, tenant_id)
                    hashes = await disk.trees(db, tenant_id)
                known.trees = await asyncio.to_thread(lambda: _sum(self._trees.size(one) for one in hashes))
                known.sessions, known.profiles = sessions, profiles
            except BaseException:
                known.read_at = -_NEVER
                raise
        return known

    def _awake(self, tenant_id: TenantId, known: _Known) -> Size:
        """What sandboxes have; until all are measured, at least what came to them."""
        measured = [self._sandboxes.held(one) for one, owner in list(self._running().items()) if owner == tenant_id]
        found = _sum(size for size in measured if size is not None)
        if measured and None not in measured:
            return found
        return Size(max(found.bytes, known.sessions.awake_bytes), max(found.entries, known.sessions.awake_files))

    def _used(self, tenant_id: TenantId, known: _Known) -> Size:
        sessions = known.sessions
        texts = known.profiles + sessions.transcript_bytes
        rows = Size(sessions.resting_bytes + texts, sessions.resting_files)
        return _sum([rows, known.trees, self._awake(tenant_id, known), *list(known.coming.values())])

    async def sweep(self) -> None:
        """Measure what came to rest, and read again what is kept by those who run something."""
        async with self._database.read() as db:
            rows = await disk.unmeasured_of_all_tenants(db, limit=_ROWS)
        for row in rows:
            tenant_id, session_id = TenantId(row.tenant_id), SessionId(row.id)
            try:
                size = await self._sandboxes.size(tenant_id, session_id)
                if size is None:
                    continue  # it is on its way there, or awake again
                await self.rests(tenant_id, session_id, size)
            except Exception:
                log.exception("a session's files could not be measured", session_id=session_id)
        now = self._now()
        running = set(self._running().values())
        for tenant_id, known in list(self._known.items()):
            if tenant_id in running:
                await self._read(tenant_id)
            elif not known.coming and now - known.asked_at > _KNOWN_SECONDS:
                del self._known[tenant_id]


def _sum(sizes: Iterable[Size]) -> Size:
    found = list(sizes)
    return Size(sum(one.bytes for one in found), sum(one.entries for one in found))


def _standing(name: str, limit: int | None, used: int, coming: int) -> Standing:
    left = None if limit is None else max(0, limit - used - coming)
    return Standing(name, limit, used, coming, left, _NEVER)
