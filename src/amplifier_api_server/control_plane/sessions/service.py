"""Sessions: making, reading and closing them. Takes a principal and plain values, gives rows; every door uses it.

What another tenant owns does not exist here: every look-up is by tenant.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import By, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.service import Catalogue
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.admission import Admission, Admitted, Place
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.live import LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.schemas import ExecutionView
from amplifier_api_server.control_plane.sessions.settlement import Outcome
from amplifier_api_server.control_plane.sessions.transcripts import count_within
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime.protocol import TurnStatus
from amplifier_api_server.tenants.errors import DomainError, NotFound, TurnCancelled
from amplifier_api_server.tenants.ids import MemberId, SessionId, TenantId, TurnId, new_session_id
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.models import Message, Session, Turn, TurnCallback
from amplifier_api_server.tenants.repository import sessions, transcripts, turns
from amplifier_api_server.tenants.repository.pages import Page
from amplifier_api_server.tenants.repository.sessions import Wanted
from amplifier_api_server.tenants.repository.transcripts import Written

_PAGE_BYTES = 4 * 1024 * 1024  # of messages
_OPEN = (SessionStatus.ACTIVE, SessionStatus.SUSPENDED, SessionStatus.FAILED)


class Sessions:
    """The sessions of all tenants, each seen by its own."""

    def __init__(
        self,
        *,
        database: Database,
        admission: Admission,
        residency: Residency,
        live: LiveTurns,
        endings: Endings,
        catalogue: Catalogue,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._admission = admission
        self._residency = residency
        self._live = live
        self._endings = endings
        self._catalogue = catalogue
        self._clock = clock
        self._telemetry = telemetry

    async def create(
        self, principal: Principal, profile: str, context: dict[str, Any]
    ) -> tuple[Session, tuple[Standing, ...]]:
        """A new session, open in a runtime; and how the limits that it took stand. Commits.

        Raises NotFound (`profile_not_found`), Invalid (a profile that can't be compiled), Refused, Unavailable; nothing is
        held then.
        """
        place = Place(new_session_id(), principal.member_id, is_new=True)
        session, admitted = await self.make(principal, place, profile, context)
        return session, admitted.standings

    async def make(
        self,
        principal: Principal,
        place: Place,
        profile: str,
        context: dict[str, Any],
        turn_id: TurnId | None = None,
    ) -> tuple[Session, Admitted]:
        """The same, in a place that the caller names. Made for one turn, it takes its limits too, and closes with it."""
        choice = await self._catalogue.choose(principal.tenant_id, profile)
        session_id = place.session_id
        admitted = await self._admission.take(principal, is_request=True, place=place, turn_id=turn_id)
        now = self._clock.now()
        session = Session(
            id=session_id,
            tenant_id=principal.tenant_id,
            member_id=principal.member_id,
            key_id=principal.credential_id,
            profile=profile,
            context=context,
            collections=[one.model_dump() for one in choice.images],
            collections_key=choice.key,
            state={},
            status=SessionStatus.ACTIVE.value,
            created_at=now,
            last_active_at=now,
            closes_with_turn=turn_id is not None,
        )
        try:
            session.runtime_id, opened = await self._residency.open_new(principal, session, choice.documents)
            session.plan, session.model = opened.plan, opened.model[:200]
            await self._insert(principal, session)
        except BaseException as error:
            await asyncio.shield(self._give_back(principal, session_id, turn_id))
            if isinstance(error, DomainError):
                error.standings = error.standings or admitted.standings
            raise
        self._telemetry.session_created(
            session_id=session_id, user_id=principal.member_id, tenant_id=principal.tenant_id
        )
        return session, admitted

    async def _give_back(self, principal: Principal, session_id: SessionId, turn_id: TurnId | None) -> None:
        await self._admission.close_session(principal.tenant_id, principal.member_id, session_id)
        if turn_id is not None:
            await self._admission.settle_turn(principal.tenant_id, turn_id, 0)

    async def _insert(self, principal: Principal, session: Session) -> None:
        try:
            async with self._database.write() as db:
                await sessions.add(db, principal.tenant_id, session)
                told = {"session_id": session.id, "member_id": session.member_id, "profile": session.profile}
                await emit(db, self._clock, principal.tenant_id, EventType.SESSION_CREATED, told)
        except BaseException:
            await asyncio.shield(self._residency.evict(principal.tenant_id, SessionId(session.id)))
            raise

    async def get(self, tenant_id: TenantId, session_id: SessionId) -> Session:
        """Raises NotFound."""
        async with self._database.read() as db:
            found = await sessions.find(db, tenant_id, session_id)
        if found is None:
            raise NotFound(f"there is no session {session_id}", code="session_not_found")
        return found

    async def page(self, tenant_id: TenantId, wanted: Wanted, page: Page) -> list[Session]:
        async with self._database.read() as db:
            return await sessions.page(db, tenant_id, wanted, page)

    async def messages(self, tenant_id: TenantId, session_id: SessionId, page: Page) -> tuple[list[Message], bool]:
        """The transcript up to the last turn that ended: a page less its last row, or fewer messages, as far as they have
        no more bytes than a page may, but one whatever it has; and whether there are others. Raises NotFound.
        """
        async with self._database.read() as db:
            part, has_more = await self._part(db, tenant_id, session_id, page)
            return await sessions.messages(db, tenant_id, session_id, part), has_more

    async def written(self, tenant_id: TenantId, session_id: SessionId, page: Page) -> tuple[list[Written], bool]:
        """The same as `messages`, as the text that is stored."""
        async with self._database.read() as db:
            part, has_more = await self._part(db, tenant_id, session_id, page)
            return await transcripts.written(db, tenant_id, session_id, part), has_more

    async def _part(
        self, db: AsyncSession, tenant_id: TenantId, session_id: SessionId, page: Page
    ) -> tuple[Page, bool]:
        """What of a page is shown, and whether there are others behind it. Raises NotFound."""
        if await sessions.find(db, tenant_id, session_id) is None:
            raise NotFound(f"there is no session {session_id}", code="session_not_found")
        weighed = await transcripts.weights(db, tenant_id, session_id, page)
        count = count_within(weighed[: (page.limit or 0) - 1], _PAGE_BYTES)
        return page.first(count), len(weighed) > count

    async def execution(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> Turn:
        """Raises NotFound."""
        async with self._database.read() as db:
            found = await turns.find(db, tenant_id, session_id, turn_id)
        if found is None:
            raise NotFound(f"there is no execution {turn_id} in session {session_id}", code="execution_not_found")
        return found

    async def executions(self, tenant_id: TenantId, wanted: turns.Wanted, page: Page) -> list[Turn]:
        """Raises NotFound for a session that there is not."""
        if wanted.session_id is not None:
            await self.get(tenant_id, SessionId(wanted.session_id))
        now = self._clock.now()
        waiting = tuple(one.id for one in self._live.of_tenant(tenant_id) if one.waits(now))
        async with self._database.read() as db:
            return await turns.page(db, tenant_id, replace(wanted, waiting=waiting), page)

    def execution_view(self, row: Turn, callback: TurnCallback | None = None) -> ExecutionView:
        """An execution as it is shown: its row does not know that it waits for a person."""
        view = ExecutionView.of(row, callback)
        live = self._live.get(TenantId(row.tenant_id), SessionId(row.session_id), TurnId(row.id))
        if view.status == "running" and live is not None and live.waits(self._clock.now()):
            view.status = "waiting_for_approval"
        return view

    async def rename(self, principal: Principal, session_id: SessionId, title: str | None) -> Session:
        """Give it a title, or take it away. Commits. Raises NotFound."""
        tenant_id = principal.tenant_id
        async with self._database.write() as db:
            found = await sessions.set_title(db, tenant_id, session_id, title)
            if found is None:
                raise NotFound(f"there is no session {session_id}", code="session_not_found")
            told = {"session_id": session_id, "title": title, "member_id": principal.member_id}
            await emit(db, self._clock, tenant_id, EventType.SESSION_UPDATED, told)
        return found

    async def recorded_events(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> bytes:
        """The whole stream of a turn that has ended, frame by frame. Raises NotFound."""
        await self.execution(tenant_id, session_id, turn_id)
        async with self._database.read() as db:
            compressed = await turns.events(db, tenant_id, turn_id)
        return await asyncio.to_thread(zlib.decompress, compressed) if compressed is not None else b""

    async def clear(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """Take a session that closed with its turn out of its runtime, and delete its folder. Idempotent."""
        await self._residency.evict(tenant_id, session_id)
        async with self._database.write() as db:
            await sessions.cleared(db, tenant_id, session_id)

    async def close(self, tenant_id: TenantId, session_id: SessionId, by: By) -> None:
        """Close it for good: its turn is cancelled, its folder deleted; its transcript can still be read. Idempotent.

        Raises NotFound.
        """
        session = await self.get(tenant_id, session_id)
        if session.status == SessionStatus.CLOSED:
            return
        async with self._database.write() as db:
            is_first = await sessions.change(
                db,
                tenant_id,
                session_id,
                expected=_OPEN,
                status=SessionStatus.CLOSED.value,
                closed_at=self._clock.now(),
                runtime_id=None,
            )
            if is_first:
                await record(db, self._clock, by, "closeSession", tenant_id=tenant_id, target=session_id)
                told = {"session_id": session_id, "member_id": session.member_id}
                await emit(db, self._clock, tenant_id, EventType.SESSION_CLOSED, told)
        # Nobody closes it again: whichever of these fails, the others must have their turn.
        try:
            turn = self._live.of_session(session_id)
            if turn is not None:
                gone = TurnCancelled("the session was closed")
                await self._endings.end_now(turn, Outcome(TurnStatus.CANCELLED, error=gone))
        finally:
            try:
                await self._residency.evict(tenant_id, session_id)
            finally:
                await self._admission.close_session(tenant_id, MemberId(session.member_id), session_id)
