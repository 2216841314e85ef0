"""From a request's headers to a principal, in microseconds for a key that was seen lately.

Owns what is remembered of keys, and when each was used last. Verdicts are remembered for `auth.cache_ttl`: that is
how late a revocation made by another process can be noticed; one made here is noticed at once (`forget`). Lookups
that come together are one query, one at a time: a flood of invented keys costs the database one connection and pushes
out no good key.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import structlog
from sqlalchemy.exc import SQLAlchemyError

from amplifier_api_server.control_plane.auth.credentials import Verdict, judge
from amplifier_api_server.control_plane.auth.headers import carried_in, well_formed
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.errors import Unavailable
from amplifier_api_server.tenants.ids import CredentialId, KeyId, TenantId
from amplifier_api_server.tenants.repository import keys

log = structlog.get_logger(__name__)

_MAX_KNOWN = 20_000  # keys that work: about 20 MB
_MAX_REFUSED = 4_000
_MAX_WAITING = 2_000  # lookups; beyond it the service says that it is not available, instead of growing
_MAX_TOGETHER = 200  # digests in one query: below SQLite's and asyncpg's limits on parameters
_MAX_TRIES = 5
_LOOKUP_TIMEOUT_SECONDS = 10.0
_WRITE_LAST_USED_SECONDS = 60.0
_WRITTEN_TOGETHER = 500


@dataclass(slots=True)
class _Known:
    verdict: Verdict
    loaded_at: float
    used_at: float


class Authenticator:
    """Who is calling. One a process; `run` beside the server, `close` at its end."""

    def __init__(self, database: Database, settings: Settings, pepper: bytes, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._pepper = pepper
        self._clock = clock
        self._header = settings.auth.methods[0].header.lower().encode("latin-1") if settings.auth.methods else b""
        self._ttl_seconds = settings.auth.cache_ttl.total_seconds()
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # the longest unloaded first
        self._refused: OrderedDict[bytes, _Known] = OrderedDict()
        self._digests: dict[bytes, bytes] = {}  # of keys that worked, by a hash that only this process can make
        self._handle_key = secrets.token_bytes(32)
        self._waiting: dict[bytes, asyncio.Future[Verdict]] = {}
        self._lookups: asyncio.Task[None] | None = None
        self._changes = 0  # counts what was forgotten, so that an answer from before is not remembered after
        self._used: dict[str, float] = {}

    async def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal:
        """Who sent these headers (names in lower case). Raises Unauthenticated; Forbidden for a suspended tenant."""
        given = carried_in(headers, self._header)
        # A key that worked lately is known again by a short keyed hash: its form and its digest take seven times as long.
        handle = hashlib.blake2b(given, digest_size=16, key=self._handle_key).digest()
        digest = self._digests.get(handle)
        if digest is not None:
            return await self._principal_of(digest)
        digest = self.digest(well_formed(given))
        principal = await self._principal_of(digest)
        if len(self._digests) >= _MAX_KNOWN:
            self._digests.clear()
        self._digests[handle] = digest
        return principal

    async def principal_of(self, text: str) -> Principal:
        """Whose well-formed key this is. Raises Unauthenticated, Forbidden, Unavailable."""
        return await self._principal_of(self.digest(text))

    async def _principal_of(self, digest: bytes) -> Principal:
        now = self._clock.now().timestamp()
        known = self._known.get(digest) or self._refused.get(digest)
        if known is None or now - known.loaded_at >= self._ttl_seconds:
            principal = (await self._looked_up(digest)).admit(now)
        else:
            known.used_at = now
            principal = known.verdict.admit(now)
        self._used[principal.credential_id] = now
        return principal

    def digest(self, text: str) -> bytes:
        """What is stored of a well-formed key."""
        return api_keys.digest(self._pepper, text)

    def forget(self, key_id: KeyId) -> None:
        """Call after the commit that revoked or changed the key: the next request with it is looked up again."""
        self._forget(lambda principal: principal.credential_id == CredentialId(key_id))

    def forget_tenant(self, tenant_id: TenantId) -> None:
        """The same, of all keys of the tenant."""
        self._forget(lambda principal: principal.tenant_id == tenant_id)

    async def run(self) -> None:
        """Write down, about once a minute and for ever, when keys were used last."""
        while True:
            await asyncio.sleep(_WRITE_LAST_USED_SECONDS)
            await self.write_last_used()

    async def write_last_used(self) -> None:
        """Write down what was used since the last time. A failure costs that, is logged, and stops nothing."""
        used, self._used = self._used, {}
        items = iter(used.items())
        while batch := {key_id: datetime.fromtimestamp(at, UTC) for key_id, at in islice(items, _WRITTEN_TOGETHER)}:
            try:
                async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS), self._database.write() as db:
                    await keys.set_last_used_of_all_tenants(db, batch)
            except (SQLAlchemyError, Unavailable, OSError, TimeoutError):
                log.exception("when keys were used last was not written", keys=len(batch))

    async def close(self) -> None:
        """Let go of what is waiting, and write down what is left to write."""
        if self._lookups is not None:
            self._lookups.cancel()
            await asyncio.gather(self._lookups, return_exceptions=True)
        await self.write_last_used()

    async def _looked_up(self, digest: bytes) -> Verdict:
        waiting = self._waiting.get(digest)
        if waiting is None:
            if len(self._waiting) >= _MAX_WAITING:
                raise Unavailable("too many API keys are being looked up; try again", retry_after_seconds=1)
            waiting = self._waiting[digest] = asyncio.get_running_loop().create_future()
            if self._lookups is None or self._lookups.done():
                self._lookups = asyncio.create_task(self._look_up())
        try:
            async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                return await asyncio.shield(waiting)  # shared with others: one caller's going away is not theirs
        except TimeoutError as error:
            raise Unavailable("the API key could not be looked up in time; try again", retry_after_seconds=1) from error

    async def _look_up(self) -> None:
        """Answer everything that waits, batch by batch, until nothing does."""
        while self._waiting:
            batch = list(islice(self._waiting, _MAX_TOGETHER))
            verdicts: Mapping[bytes, Verdict] = {}
            try:
                async with asyncio.timeout(_LOOKUP_TIMEOUT_SECONDS):
                    verdicts = await self._read([*batch, *self._worth_refreshing(_MAX_TOGETHER - len(batch))])
            except (SQLAlchemyError, Unavailable, OSError, TimeoutError):
                log.exception("API keys could not be looked up", keys=len(batch))
            finally:
                for digest in batch:
                    waiting = self._waiting.pop(digest)
                    if waiting.done():
                        continue
                    if (verdict := verdicts.get(digest)) is not None:
                        waiting.set_result(verdict)
                    else:
                        waiting.set_exception(Unavailable("the database does not answer", retry_after_seconds=1))
                        waiting.exception()  # seen: nobody may be left to wait for it

    async def _read(self, digests: list[bytes]) -> Mapping[bytes, Verdict]:
        """Verdicts of `digests`, remembered."""
        for _ in range(_MAX_TRIES):
            changes, now = self._changes, self._clock.now()
            async with self._database.read() as db:
                found = await keys.find_by_digest(db, digests)
            if changes == self._changes:
                break
        verdicts = {digest: judge(found.get(digest), self._settings, now) for digest in digests}
        if changes == self._changes:
            for digest, verdict in verdicts.items():
                self._remember(digest, verdict, now.timestamp())
        return verdicts

    def _remember(self, digest: bytes, verdict: Verdict, now: float) -> None:
        kind, other, most = self._known, self._refused, _MAX_KNOWN
        if verdict.principal is None:
            kind, other, most = other, kind, _MAX_REFUSED
        other.pop(digest, None)
        kind[digest] = _Known(verdict, loaded_at=now, used_at=now - 1e-6)
        kind.move_to_end(digest)
        while len(kind) > most:
            kind.popitem(last=False)

    def _worth_refreshing(self, most: int) -> list[bytes]:
        """Known keys that were used since they were loaded and will be looked up again soon; the unused are dropped.

        A thousand busy keys are thus a few queries a second, not a thousand.
        """
        found: list[bytes] = []
        before = self._clock.now().timestamp() - self._ttl_seconds / 2
        for digest in list(islice(self._known, most)):
            known = self._known[digest]
            if known.loaded_at > before:
                break
            if digest in self._waiting:
                continue
            if known.used_at > known.loaded_at:
                found.append(digest)
            else:
                del self._known[digest]
        return found

    def _forget(self, is_meant: Callable[[Principal], bool]) -> None:
        self._changes += 1
        for digest, known in list(self._known.items()):
            if known.verdict.principal is not None and is_meant(known.verdict.principal):
                del self._known[digest]
        self._refused.clear()  # a tenant that is active again, a key of a tenant that was suspended
