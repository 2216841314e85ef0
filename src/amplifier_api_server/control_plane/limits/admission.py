"""Admission: may this principal start this work now?

Owns the one place where limits are taken, given back and explained. Refuses to know HTTP, tiers' names or prices.
Invariant: every limit of a call is taken or none is; what is taken is a lease that `renew` keeps and a crash gives
back (a session's place among its member's open ones is the exception: it is as durable as the session, and is read
from the database). Where rate limiting is switched off, nothing is refused and everything is still counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import Disk
from amplifier_api_server.control_plane.limits import wants
from amplifier_api_server.control_plane.limits.backend import Budget, Denied, Held, LimitsBackend, Rate, Standing, Want
from amplifier_api_server.control_plane.limits.disk_use import DiskUse
from amplifier_api_server.control_plane.limits.headers import nearest
from amplifier_api_server.control_plane.limits.refusals import refusal_of
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, InsufficientStorage, Refused
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.repository import sessions, usage
from amplifier_api_server.tenants.tiers import LIMIT_NAMES, Limits

_NOTHING = Size()
_MAX_REFUSALS = 10_000  # members whose last refusal is remembered
_UNLIMITED = Limits(**dict.fromkeys(LIMIT_NAMES))


@dataclass(frozen=True, slots=True)
class Place:
    """A session's place among its member's: the member is the session's own, whoever calls."""

    session_id: SessionId
    member_id: MemberId
    is_new: bool = False
    is_one_shot: bool = (
        False  # a new one that closes with its execution: it never stays open, and so is not among the open
    )


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a call got."""

    standings: tuple[Standing, ...]
    tokens: int = 0  # reserved for its turn


@dataclass(slots=True)
class _Counted:
    """A request that was counted before its service is asked, and in which rates."""

    rates: tuple[Rate, ...]
    is_kept: bool  # also where its service is refused another limit
    is_taken_over: bool = False


# Of the call that is being carried out in this context. What counts it and what takes it over are the gate and a service,
# and nothing between the two has to pass it on.
_counted: ContextVar[_Counted | None] = ContextVar("counted", default=None)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The last time a member was told no."""

    at: datetime
    limit: str
    code: str
    detail: str
    retry_after_seconds: float | None


class Admission:
    """One a process, over a backend that may be shared by many."""

    def __init__(
        self, backend: LimitsBackend, settings: Settings, database: Database, clock: Clock, disk: Disk | None = None
    ) -> None:
        self.backend = backend
        self._database = database
        self._clock = clock
        self._disk = disk
        self.disk_use: DiskUse | None = None  # counts what tenants keep
        self._is_enforced = settings.rate_limiting.enabled
        self._ttl_seconds = settings.rate_limiting.lease_ttl.total_seconds()
        self._reservation = settings.rate_limiting.turn_reservation
        self._idle_minutes = settings.sessions.idle_timeout.total_seconds() / 60
        self._refusals: OrderedDict[tuple[TenantId, MemberId], Refusal] = OrderedDict()

    async def request(self, principal: Principal) -> Standing:
        """Count one request: how the limit stands that is nearer to its end. Raises Refused."""
        taken = await self.backend.take(self._requests(principal))
        if isinstance(taken, Denied):
            raise self._refused(principal, taken)
        return nearest(taken.standings)

    async def request_ahead(self, principal: Principal, *, is_kept: bool = False) -> Standing:
        """Count one request before its body is read. Raises Refused.

        The `take` of its service, in the same context, takes it over: it is not counted twice, and where that is refused it
        is given back, unless it `is_kept`.
        """
        standing = await self.request(principal)
        _counted.set(_Counted(self._requests(principal), is_kept))
        return standing

    async def has_request_left(self, principal: Principal) -> None:
        """Raise Refused where a request would be refused now, counting none: its service takes it with the rest."""
        for want in self._requests(principal):
            standing = await self.backend.standing(want)
            if standing.remaining is not None and standing.remaining < 1:
                pace = 60.0 / standing.limit if standing.limit else None
                retry_after = None if pace is None else max(0.0, standing.resets_at - self._now() - 60.0 + pace)
                raise self._refused(principal, Denied(standing.name, (standing,), retry_after))

    async def has_disk_left(self, principal: Principal, *, may_free: bool = False) -> None:
        """Raise InsufficientStorage where nothing more can be kept, of the machine's disk or of the tenant's share of it.

        `may_free`: what is to be done may as well delete something.
        """
        if self._disk is not None:
            self._disk.require_room()
        await self.require_disk(principal, may_free=may_free)

    async def require_disk(self, principal: Principal, more: Size = _NOTHING, *, may_free: bool = False) -> None:
        """Raise InsufficientStorage where the tenant would keep more than its share with so much more."""
        if self.disk_use is None:
            return
        try:
            await self.disk_use.require(principal.tenant_id, self._limits(principal), more, may_free=may_free)
        except InsufficientStorage as error:
            self._remember(principal, str(error.extra["limit"]), error)
            raise

    async def sandbox(self, principal: Principal, runtime_id: RuntimeId) -> Admitted:
        """A place among the tenant's sandboxes. Raises Refused."""
        return await self.take(principal, runtime_id=runtime_id)

    async def take(
        self,
        principal: Principal,
        *,
        is_request: bool = False,
        place: Place | None = None,
        turn_id: TurnId | None = None,
        runtime_id: RuntimeId | None = None,
    ) -> Admitted:
        """Everything that is asked for, or nothing. Raises Refused, or QuotaExceeded for tokens."""
        limits, tenant_id = self._limits(principal), principal.tenant_id
        counted = self._counted_ahead(principal) if is_request else None
        wanted: list[Want] = [*self._requests(principal)] if is_request and counted is None else []
        if place is not None:
            wanted += await self._places(tenant_id, place, limits)
        if runtime_id is not None:
            wanted.append(wants.sandbox(tenant_id, runtime_id, limits.sandboxes, self._ttl_seconds))
        if turn_id is not None:
            await self._seed_tokens(tenant_id)
            wanted.append(self.budget_of(principal, turn_id))
        taken = await self.backend.take(wanted)
        if counted is not None:
            counted.is_taken_over = True
            if isinstance(taken, Denied) and not counted.is_kept:
                for rate in counted.rates:
                    await self.backend.refund(rate)
            requests = [await self.backend.standing(rate) for rate in counted.rates]
            taken = replace(taken, standings=(*requests, *taken.standings))
        if isinstance(taken, Denied):
            raise self._refused(principal, taken)
        return Admitted(taken.standings, taken.amounts.get(turn_id or "", 0))

    def _counted_ahead(self, principal: Principal) -> _Counted | None:
        """This call's request, where it was counted and no `take` has taken it over."""
        counted = _counted.get()
        if counted is None or counted.is_taken_over or counted.rates[0].key != self._requests(principal)[0].key:
            return None
        return counted

    def budget_of(self, principal: Principal, turn_id: TurnId) -> Budget:
        """The reservation of one turn, for the model gateway to extend while the turn spends."""
        limit = self._limits(principal).tokens_per_day
        return wants.tokens(principal.tenant_id, turn_id, limit, self._reservation, self._ttl_seconds)

    async def keep_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None:
        """It is active: its place is kept, or taken again where it was lost, limit or not. Idempotent."""
        await self._keep(wants.concurrent(tenant_id, member_id, session_id, None, self._ttl_seconds))
        await self._keep(wants.concurrent_of_all(tenant_id, session_id, None, self._ttl_seconds))

    async def release_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None:
        """It is active no more: suspended, failed. Idempotent."""
        await self.backend.release(wants.concurrent_key(tenant_id, member_id), session_id)
        await self.backend.release(wants.all_concurrent_key(tenant_id), session_id)

    async def close_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None:
        """It is closed, or was never made: both places are free. Idempotent; call after the commit that closed it."""
        await self.release_session(tenant_id, member_id, session_id)
        await self.backend.release(wants.owned_key(tenant_id, member_id), session_id)
        await self.backend.release(wants.all_owned_key(tenant_id), session_id)

    async def release_sandbox(self, tenant_id: TenantId, runtime_id: RuntimeId) -> None:
        """The sandbox is gone. Idempotent."""
        await self.backend.release(wants.sandboxes_key(tenant_id), runtime_id)

    async def settle_turn(self, tenant_id: TenantId, turn_id: TurnId, spent: int) -> None:
        """The turn ended and used `spent` tokens, which the ledger says already. Counts once, however often it is
        called.
        """
        await self.backend.settle(wants.tokens_key(tenant_id), turn_id, spent)

    async def renew(
        self,
        *,
        active: Iterable[tuple[TenantId, MemberId, SessionId]] = (),
        turns: Iterable[tuple[TenantId, TurnId]] = (),
        sandboxes: Iterable[tuple[TenantId, RuntimeId]] = (),
    ) -> None:
        """Keep the leases of what is there; call well within `rate_limiting.lease_ttl`.

        An active session or a sandbox whose lease was lost gets its place back, limit or not: it exists, and must
        count. A lost reservation stays lost; the gateway's next extension begins a new one.
        """
        for tenant_id, member_id, session_id in active:
            await self.keep_session(tenant_id, member_id, session_id)
        for tenant_id, runtime_id in sandboxes:
            await self._keep(wants.sandbox(tenant_id, runtime_id, None, self._ttl_seconds))
        for tenant_id, turn_id in turns:
            await self.backend.renew(wants.tokens_key(tenant_id), turn_id, self._ttl_seconds)

    async def standings(self, principal: Principal) -> tuple[Standing, ...]:
        """How each of the principal's limits stands, taking nothing."""
        limits, tenant_id, member_id = self._limits(principal), principal.tenant_id, principal.member_id
        nobody = Place(SessionId(""), member_id, is_new=True)
        await self._seed_tokens(tenant_id)
        asked: Sequence[Want] = [
            *self._requests(principal),
            self.budget_of(principal, TurnId("")),
            *await self._places(tenant_id, nobody, limits),
            wants.sandbox(tenant_id, RuntimeId(""), limits.sandboxes, self._ttl_seconds),
        ]
        found = tuple([await self.backend.standing(want) for want in asked])
        return found if self.disk_use is None else found + await self.disk_use.standings(tenant_id, limits)

    def last_refusal(self, principal: Principal) -> Refusal | None:
        """Since this process started."""
        return self._refusals.get((principal.tenant_id, principal.member_id))

    @property
    def is_enforced(self) -> bool:
        return self._is_enforced

    def _limits(self, principal: Principal) -> Limits:
        return principal.limits if self._is_enforced else _UNLIMITED

    def _now(self) -> float:
        return self._clock.now().timestamp()

    def _requests(self, principal: Principal) -> tuple[Rate, ...]:
        """One of the member's, and of the tenant's."""
        limits, tenant_id = self._limits(principal), principal.tenant_id
        mine = wants.request(tenant_id, principal.member_id, limits.requests_per_minute)
        return mine, wants.request_of_all(tenant_id, limits.tenant_requests_per_minute)

    async def _places(self, tenant_id: TenantId, place: Place, limits: Limits) -> list[Held]:
        member_id, session_id, ttl = place.member_id, place.session_id, self._ttl_seconds
        found = [
            wants.concurrent(tenant_id, member_id, session_id, limits.concurrent_sessions, ttl),
            wants.concurrent_of_all(tenant_id, session_id, limits.tenant_concurrent_sessions, ttl),
        ]
        if place.is_new and not place.is_one_shot:
            await self.backend.seed(
                wants.owned_key(tenant_id, member_id), partial(self._open_sessions, tenant_id, member_id)
            )
            await self.backend.seed(wants.all_owned_key(tenant_id), partial(self._open_sessions_of_all, tenant_id))
            found.append(wants.owned(tenant_id, member_id, session_id, limits.sessions_per_user))
            found.append(wants.owned_of_all(tenant_id, session_id, limits.tenant_sessions))
        return found

    async def _keep(self, held: Held) -> None:
        if not await self.backend.renew(held.key, held.holder, self._ttl_seconds):
            await self.backend.take((replace(held, limit=None),))

    async def _seed_tokens(self, tenant_id: TenantId) -> None:
        await self.backend.seed(wants.tokens_key(tenant_id), partial(self._spent_today, tenant_id))

    async def _spent_today(self, tenant_id: TenantId) -> int:
        async with self._database.read() as db:
            return await usage.spent_on(db, tenant_id, self._clock.now().astimezone(UTC).date())

    async def _open_sessions(self, tenant_id: TenantId, member_id: MemberId) -> Sequence[str]:
        async with self._database.read() as db:
            return await sessions.open_ids_of_member(db, tenant_id, member_id)

    async def _open_sessions_of_all(self, tenant_id: TenantId) -> Sequence[str]:
        async with self._database.read() as db:
            return await sessions.open_ids(db, tenant_id)

    def _refused(self, principal: Principal, denied: Denied) -> Refused:
        """The error, remembered for `last_refusal`."""
        refused = refusal_of(denied, self._idle_minutes)
        self._remember(principal, denied.name, refused)
        return refused

    def _remember(self, principal: Principal, limit: str, error: DomainError) -> None:
        key = (principal.tenant_id, principal.member_id)
        self._refusals[key] = Refusal(
            self._clock.now(), limit, error.stable_code, error.detail, error.retry_after_seconds
        )
        self._refusals.move_to_end(key)
        while len(self._refusals) > _MAX_REFUSALS:
            self._refusals.popitem(last=False)
