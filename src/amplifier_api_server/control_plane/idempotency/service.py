"""Keys of requests: who does the work, and what everybody else with the same key is told.

Owns the rows. Invariant: of all requests with one key at most one does the work, whatever dies in between; what is not known
is said to be unknown, and is not done again. A key is a member's own. Answers may hold secrets (a new API key): they are
sealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.actions import KNOWN_BY_THE_LOG
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock, Steadiness
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.idempotency.answers import Fate, StoredAnswer, fate_of_error
from amplifier_api_server.control_plane.idempotency.fingerprints import checked_key, fingerprint_of, rightful
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.secrets import SealBroken, Vault
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import Conflict, DomainError, Invalid
from amplifier_api_server.tenants.ids import MemberId, SessionId, TenantId, TurnId, new_turn_id, random_base62
from amplifier_api_server.tenants.lifecycle import RequestStatus
from amplifier_api_server.tenants.models import IdempotentRequest
from amplifier_api_server.tenants.repository import idempotency, turns

log = structlog.get_logger(__name__)

_SECONDS = 10.0  # for a transaction
_ROWS = 200
_FORGOTTEN_ROWS = 1000  # a pass; there is another one a second later
_MAX_UNSETTLED = 10_000
_EVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RepeatedTurn:
    """An execution that was begun with this key already."""

    session_id: SessionId
    turn_id: TurnId


class Ticket:
    """The right, and the duty, to do a request's work. Settle it by exactly one of its methods; none of them raises."""

    def __init__(self, keeper: Idempotency, row: IdempotentRequest) -> None:
        self._keeper = keeper
        self._row = row

    @property
    def turn_id(self) -> TurnId:
        """Of an execution: the id that it is to be begun with."""
        assert self._row.turn_id is not None, "it was claimed for an execution"
        return TurnId(self._row.turn_id)

    @property
    def session_id(self) -> SessionId:
        """Of an execution: its session, which may have to be made for it."""
        assert self._row.session_id is not None, "it was claimed for an execution"
        return SessionId(self._row.session_id)

    async def answered(self, answer: StoredAnswer, fate: Fate = Fate.KEEP) -> None:
        """The work was done, or refused for good: this is what is said again."""
        await self._keeper.settle(self._row, fate, answer)

    async def release(self) -> None:
        """No work was begun: the key is free again."""
        await self._keeper.settle(self._row, Fate.RELEASE)

    async def refused(self, error: DomainError) -> None:
        """The request ended in this error."""
        await self._keeper.settle(self._row, fate_of_error(error), StoredAnswer.of_error(error))

    async def interrupted(self) -> None:
        """The work broke off, and whoever did it can't say how far it came."""
        await self._keeper.settle(self._row, Fate.UNKNOWN)

    async def did_not_run(self, error: BaseException) -> None:
        """Of an execution that ended in an error: the key is free again, unless the error is how its turn ended.

        A turn that says so has its id in the error. One that does not and says "not now" was recorded, and sent nowhere.
        """
        told = error if isinstance(error, DomainError) and "request_id" not in error.extra else None
        if told is not None and fate_of_error(told) in {Fate.RELEASE, Fate.RELEASE_UNLESS_DONE}:
            await self.release()
        else:
            await self._keeper.settle_turn(self._row)


class Idempotency:
    """One a process."""

    def __init__(self, *, settings: Settings, database: Database, vault: Vault, clock: Clock) -> None:
        self._ttl = settings.idempotency.ttl
        self._database = database
        self._vault = vault
        self._clock = clock
        self._steadiness = Steadiness(clock)
        self._unsettled: dict[tuple[str, str, str, str], tuple[IdempotentRequest, Fate, StoredAnswer | None]] = {}
        self._working: set[asyncio.Task[Any]] = set()

    async def begin(self, principal: Principal, key: str, fingerprint: bytes, operation: str) -> Ticket | StoredAnswer:
        """The ticket for a request that is the first with its key; what the first was answered. Commits.

        Raises Invalid (`idempotency_key_reused`), Conflict (`idempotency_in_flight`, `idempotency_lost`,
        `idempotency_answer_too_large`), Unavailable.
        """
        row = self._row_of(principal, key, rightful(fingerprint, principal.grants), operation)
        kept = await self._claim(principal, row)
        if kept is None:
            return Ticket(self, row)
        if kept.status == RequestStatus.RUNNING:
            raise in_flight()
        return self._opened(kept)

    async def begin_turn(
        self, principal: Principal, key: str, fingerprint: bytes, session_id: SessionId, operation: str = "execute"
    ) -> Ticket | RepeatedTurn:
        """The same for an execution: its ticket has the ids that it is begun with, and its turn is its answer."""
        row = self._row_of(principal, key, fingerprint, operation)
        row.session_id, row.turn_id = session_id, new_turn_id()
        kept = await self._claim(principal, row)
        if kept is None:
            return Ticket(self, row)
        if kept.turn_id is None or kept.session_id is None:  # begun by another door, as a message with an answer
            raise reused()
        return RepeatedTurn(SessionId(kept.session_id), TurnId(kept.turn_id))

    async def once(
        self,
        principal: Principal,
        key: str,
        operation: str,
        arguments: Mapping[str, Any],
        work: Callable[[], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """What `work` gives, or gave the first time; what it raised for good is raised again. `arguments` are JSON.

        The work goes on when whoever waits for it goes away: its answer is there when they come back. Raises as `begin` does.
        """
        said = orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        found = await self.begin(principal, checked_key(key), fingerprint_of(operation, {}, b"", said), operation)
        if isinstance(found, StoredAnswer):
            return found.result()
        task = asyncio.create_task(self._work(found, work))
        self._working.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _work(self, ticket: Ticket, work: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        try:
            result = await work()
            answer = StoredAnswer.of_result(result)
        except DomainError as error:
            await ticket.refused(error)
            raise
        except BaseException:
            await asyncio.shield(ticket.interrupted())
            raise
        await ticket.answered(answer)
        return result

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it was told; nobody may be left

    async def close(self) -> None:
        """End what is done for callers that went away."""
        for task in self._working:
            task.cancel()
        await asyncio.gather(*self._working, return_exceptions=True)

    # Rows.

    def _row_of(self, principal: Principal, key: str, fingerprint: bytes, operation: str) -> IdempotentRequest:
        return IdempotentRequest(
            tenant_id=principal.tenant_id,
            member_id=principal.member_id,
            key=key,
            fingerprint=fingerprint,
            operation=operation,
            request_id=current_origin().record_id or random_base62(22),
            status=RequestStatus.RUNNING.value,
            created_at=self._clock.now(),
        )

    async def _claim(self, principal: Principal, row: IdempotentRequest) -> IdempotentRequest | None:
        """None where the row was written; else the one that is kept, which is of the same request."""
        try:
            async with self._database.write(_SECONDS) as db:
                if await idempotency.claim(db, principal.tenant_id, row, self._forgotten_before()):
                    return None
                kept = await idempotency.find(db, principal.tenant_id, principal.member_id, row.key)
        except BaseException:
            # It may be written all the same, and nobody has the ticket: the key would be in flight until it is forgotten.
            self._note(row, Fate.RELEASE)
            raise
        assert kept is not None, "nobody else writes meanwhile"
        if kept.fingerprint != row.fingerprint or kept.operation != row.operation:
            raise reused()
        if kept.status == RequestStatus.LOST:
            raise _lost()
        return kept

    def _opened(self, kept: IdempotentRequest) -> StoredAnswer:
        if kept.answer is None:
            detail = "the request was done, and its answer was too large to be kept; look at what it made"
            raise Conflict(detail, code="idempotency_answer_too_large")
        try:
            text = self._vault.open(kept.answer, _owner(kept)).get_secret_value()
        except SealBroken as error:
            log.warning("an answer that was kept can't be opened", why=str(error), operation=kept.operation)
            raise _lost() from error
        return StoredAnswer.unpacked(text)

    async def settle(self, row: IdempotentRequest, fate: Fate, answer: StoredAnswer | None = None) -> None:
        """Write how a request ended; where that can't be written, `sweep` tries again."""
        try:
            await asyncio.shield(self._settle(row, fate, answer))
        except Exception:
            log.exception("how a request with a key ended could not be written yet", operation=row.operation)
            self._note(row, fate, answer)

    def _note(self, row: IdempotentRequest, fate: Fate, answer: StoredAnswer | None = None) -> None:
        """For `sweep`. What was noted of it before stands."""
        if len(self._unsettled) < _MAX_UNSETTLED:
            place = row.tenant_id, row.member_id, row.key, row.request_id
            self._unsettled.setdefault(place, (row, fate, answer))

    async def _settle(self, row: IdempotentRequest, fate: Fate, answer: StoredAnswer | None) -> None:
        tenant_id, member_id, key, first = TenantId(row.tenant_id), MemberId(row.member_id), row.key, row.request_id
        sealed = None
        if fate is Fate.KEEP and answer is not None and not answer.is_too_large:
            sealed = self._vault.seal(SecretStr(answer.packed()), _owner(row))
        async with self._database.write(_SECONDS) as db:
            if fate not in {Fate.KEEP, Fate.RELEASE}:
                fate = await self._judged(db, row, fate)
            if fate is Fate.RELEASE:
                await idempotency.release(db, tenant_id, member_id, key, first)
            else:
                status = RequestStatus.ANSWERED if fate is Fate.KEEP else RequestStatus.LOST
                await idempotency.settle(db, tenant_id, member_id, key, first, status=status, answer=sealed)

    async def _judged(self, db: AsyncSession, row: IdempotentRequest, fate: Fate) -> Fate:
        """RELEASE where the work was certainly not done, else UNKNOWN."""
        if row.operation in KNOWN_BY_THE_LOG:
            return Fate.UNKNOWN if await idempotency.was_recorded_of_all_tenants(db, row) else Fate.RELEASE
        return Fate.RELEASE if fate is Fate.RELEASE_UNLESS_DONE else Fate.UNKNOWN

    async def settle_turn(self, row: IdempotentRequest) -> None:
        """Forget a key whose execution was never recorded."""
        try:
            async with self._database.write(_SECONDS) as db:
                await self._release_unless_begun(db, row)
        except Exception:
            log.exception("how a request with a key ended could not be written yet", operation=row.operation)
            self._note(row, Fate.UNKNOWN)

    async def _release_unless_begun(self, db: AsyncSession, row: IdempotentRequest) -> None:
        tenant_id = TenantId(row.tenant_id)
        assert row.session_id is not None, "it is of an execution"
        assert row.turn_id is not None, "it is of an execution"
        if await turns.find(db, tenant_id, SessionId(row.session_id), TurnId(row.turn_id)) is None:
            await idempotency.release(db, tenant_id, MemberId(row.member_id), row.key, row.request_id)

    # What time, and the end of a process, do.

    async def recover(self) -> int:
        """At the start: nothing that an earlier process began is still being done; how many requests that was of.

        An execution's turn tells how it ended. Other work was done if the audit log says so, and was not if it would say so.
        """
        async with self._database.write() as db:
            count = await idempotency.release_unbegun_of_all_tenants(db)
        after = "", "", ""
        while True:
            async with self._database.read() as db:
                rows = await idempotency.running_of_all_tenants(db, limit=_ROWS, after=after)
            for row in rows:
                after = row.tenant_id, row.member_id, row.key
                await self.settle(row, Fate.UNKNOWN)
            count += len(rows)
            if len(rows) < _ROWS:
                return count

    def _forgotten_before(self) -> datetime:
        """Requests before it count no more. While the machine's clock is on trial all do: none is done twice for its sake."""
        return self._clock.now() - self._ttl if self._steadiness.is_given() else _EVER

    async def sweep(self) -> None:
        """Forget keys that are older than `idempotency.ttl`, and write what could not be written."""
        for place, (row, fate, answer) in list(self._unsettled.items()):
            del self._unsettled[place]
            if row.turn_id is not None:
                await self.settle_turn(row)
            else:
                await self.settle(row, fate, answer)
        before = self._forgotten_before()
        async with self._database.read() as db:
            is_due = await idempotency.has_older_of_all_tenants(db, before)
        if is_due:
            async with self._database.write() as db:
                await idempotency.forget_of_all_tenants(db, before, _FORGOTTEN_ROWS)


def _owner(row: IdempotentRequest) -> tuple[str, ...]:
    return "idempotent request", row.tenant_id, row.member_id, row.key


def in_flight(turn_id: str | None = None) -> Conflict:
    """A request with this key is being done."""
    more = {"request_id": turn_id} if turn_id is not None else {}
    detail = "the first request with this Idempotency-Key is still being done; try again"
    return Conflict(detail, code="idempotency_in_flight", retry_after_seconds=1, **more)


def reused() -> Invalid:
    detail = "this Idempotency-Key was used for another request; use a new one for each"
    return Invalid(detail, code="idempotency_key_reused")


def _lost() -> Conflict:
    detail = "the first request with this Idempotency-Key was, or may have been, done, and its answer is lost"
    return Conflict(f"{detail}; look at what is there, and use another key", code="idempotency_lost")
