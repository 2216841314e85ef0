"""Login cookies: whose each is, and when it was used last. The `LoginVerifier` of the authenticator.

Invariants: a login that is revoked, over, of a provider that is configured no more, of a member who is not active, or of a
tenant that is not, makes no principal; a login that is used goes on for `idle_timeout`, but never beyond `max_duration`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from amplifier_api_server.control_plane.auth.credentials import DISABLED, SUSPENDED, Verdict, grants_by, limits_for
from amplifier_api_server.control_plane.auth.headers import Headers
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.auth.verdicts import Verdicts
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.logins.csrf import login_cookie
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Forbidden, Unauthenticated, Unavailable
from amplifier_api_server.tenants.ids import CredentialId, MemberId, PersonId, TenantId
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.repository import logins
from amplifier_api_server.tenants.repository.logins import LoginFacts

log = structlog.get_logger(__name__)

_WRITE_SECONDS: Final = 30.0  # a tenth of the shortest idle_timeout there can be
_WRITTEN_TOGETHER: Final = 500
_TIMEOUT_SECONDS: Final = 10.0
_OVER: Final = "this login is over; log in again"
_NOWHERE: Final = Verdict(
    None, Forbidden, "you are logged in, but a member of no tenant: you need an invitation", "no_membership"
)


def digest_of(pepper: bytes, secret: bytes) -> bytes:
    """What is stored of a cookie's value."""
    return hmac.digest(pepper, b"login\0" + secret, "sha256")


def judge(found: LoginFacts | None, settings: Settings, now: datetime) -> Verdict:
    """What a login is good for now. Pure."""
    if not counts(found, settings, now) or found is None:
        return Verdict(None, Unauthenticated, _OVER)
    if found.tenant_id is None or found.member_id is None or found.member_status == MemberStatus.REMOVED:
        return _NOWHERE
    if found.tenant_status == TenantStatus.SUSPENDED:
        return SUSPENDED
    if found.tenant_status != TenantStatus.ACTIVE:
        return _NOWHERE
    if found.member_status != MemberStatus.ACTIVE:
        return DISABLED
    role, tier = found.role or "", found.tier or ""
    principal = Principal(
        CredentialId(found.login_id),
        TenantId(found.tenant_id),
        MemberId(found.member_id),
        role,
        grants_by(role, found.role_grants),
        tier,
        limits_for(settings, found.tenant_id, tier, found.tenant_limits, found.member_limits),
        method="login",
        # What it opened ends then at the latest; that it was left alone before is seen by looking it up again (`still`).
        expires_at=(found.created_at + settings.auth.login.max_duration).timestamp(),
        person_id=PersonId(found.person_id),
        proof=found.digest,
    )
    return Verdict(principal, expires_at=found.expires_at.timestamp())


def counts(found: LoginFacts | None, settings: Settings, now: datetime) -> bool:
    """Whether somebody is logged in by it, a member of a tenant or not."""
    if found is None or found.revoked_at is not None or found.expires_at <= now:
        return False
    if found.created_at + settings.auth.login.max_duration <= now:
        return False
    return found.provider in [one.name for one in settings.auth.logins if one.is_complete]


class KnownLogins:
    """One a process; `run` beside the server, `close` at its end."""

    def __init__(self, database: Database, settings: Settings, pepper: bytes, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._pepper = pepper
        self._clock = clock
        self._used: dict[str, float] = {}
        self._verdicts: Verdicts[bytes] = Verdicts(
            self._read, clock, ttl_seconds=settings.auth.cache_ttl.total_seconds()
        )

    def carried_in(self, headers: Headers) -> bytes | None:
        return login_cookie(self._settings, headers) if self._settings.auth.logins else None

    async def principal_of(self, given: bytes) -> Principal:
        """Whose it is. Raises Unauthenticated, Forbidden, Unavailable."""
        now = self._clock.now().timestamp()
        verdict = await self._verdicts.of(digest_of(self._pepper, given))
        try:
            principal = verdict.admit(now)
        except Unauthenticated:
            raise Unauthenticated(_OVER) from None
        self.was_used(principal.credential_id)
        return principal

    def was_used(self, login_id: str) -> None:
        """It goes on for `idle_timeout` from now."""
        self._used[login_id] = self._clock.now().timestamp()

    async def still(self, principals: Sequence[Principal]) -> list[Principal | None]:
        now = self._clock.now().timestamp()
        digests = [one.proof for one in principals if isinstance(one.proof, bytes)]
        verdicts = await self._verdicts.again(list(dict.fromkeys(digests)))
        found: list[Principal | None] = []
        for one in principals:
            verdict = verdicts.get(one.proof) if isinstance(one.proof, bytes) else None
            is_good = verdict is not None and (verdict.expires_at is None or verdict.expires_at > now)
            found.append(verdict.principal if verdict is not None and is_good else None)
        return found

    def forget(self, is_meant: Callable[[Principal], bool]) -> None:
        self._verdicts.forget(is_meant)

    async def run(self) -> None:
        """Write down, about twice a minute and for ever, when logins were used last."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            await self.write_last_used()

    async def write_last_used(self) -> None:
        """Write down what was used since the last time. A failure costs that, is logged, and stops nothing."""
        used, self._used = self._used, {}
        times, items = self._settings.auth.login, iter(used.items())
        while batch := {one: datetime.fromtimestamp(at, UTC) for one, at in islice(items, _WRITTEN_TOGETHER)}:
            try:
                async with asyncio.timeout(_TIMEOUT_SECONDS), self._database.write() as db:
                    await logins.extend_of_all_tenants(db, batch, idle=times.idle_timeout, longest=times.max_duration)
            except (SQLAlchemyError, Unavailable, OSError, TimeoutError):
                log.exception("when logins were used last was not written", logins=len(batch))

    async def close(self) -> None:
        await self._verdicts.close()
        await self.write_last_used()

    async def _read(self, digests: Sequence[bytes]) -> Mapping[bytes, Verdict]:
        now = self._clock.now()
        async with self._database.read() as db:
            found = await logins.find_by_digest_of_all_tenants(db, digests)
        return {digest: judge(found.get(digest), self._settings, now) for digest in digests}
