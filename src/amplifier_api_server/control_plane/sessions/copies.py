"""New sessions out of old ones: forks, and what was exported and is imported. Every door uses it.

Owns what goes over: the configuration that the session is pinned to, the transcript up to an execution, the modules' state as
of that execution's end, and the files if they are asked for. A copy is a session of its own from then on: it begins
suspended, and the next call wakes it. Nothing of it is held when making it fails.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.service import Catalogue
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.admission import Admission, Place
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.limits.disk_use import DiskUse
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.control_plane.sessions import transcripts
from amplifier_api_server.control_plane.sessions.residency import Residency, require_readable
from amplifier_api_server.control_plane.sessions.settlement import MAX_TRANSCRIPT_BYTES
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants.errors import Conflict, DomainError, NotFound, TooLarge
from amplifier_api_server.tenants.ids import SessionId, TenantId, TurnId, new_session_id
from amplifier_api_server.tenants.images import trees_of
from amplifier_api_server.tenants.json_columns import JsonText
from amplifier_api_server.tenants.lifecycle import SessionStatus, TurnStatus
from amplifier_api_server.tenants.models import Session, Turn
from amplifier_api_server.tenants.repository import sessions, turns
from amplifier_api_server.tenants.repository import transcripts as rows

MAX_WHOLE_BYTES: Final = 4 * 1024 * 1024  # of a document that a door holds whole
_OURS_BYTES: Final = 128  # what a document says of a message beside the message itself
_WITH_TRANSCRIPT = (TurnStatus.COMPLETED, TurnStatus.CANCELLED)  # executions that added to it


@dataclass(frozen=True, slots=True)
class Wish:
    """What a fork should be."""

    at: TurnId | None = None  # the last execution that goes over; None: all that have ended
    title: str | None = None  # None: the source's
    files: bool = True  # the workspace as it is now, whichever execution the fork is at


class Copies:
    """Makes sessions of what is there."""

    def __init__(
        self,
        *,
        database: Database,
        admission: Admission,
        residency: Residency,
        catalogue: Catalogue,
        garbage: Garbage,
        disk_use: DiskUse,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._admission = admission
        self._residency = residency
        self._catalogue = catalogue
        self._garbage = garbage
        self._disk_use = disk_use
        self._clock = clock
        self._telemetry = telemetry

    async def fork(
        self, principal: Principal, session_id: SessionId, wish: Wish
    ) -> tuple[Session, tuple[Standing, ...]]:
        """A new session that goes on from where another one was. Commits.

        Raises NotFound, Conflict (`execution_not_ended`, `turn_running` where files are wanted meanwhile, `collection_gone`),
        Refused, Unavailable.
        """
        source, until, state = await self._until(principal.tenant_id, session_id, wish.at)
        require_readable(source, ())
        made = self._new(principal, source.profile, source.context, wish.title or source.title)
        made.plan, made.model = source.plan, source.model
        made.collections, made.collections_key = source.collections, source.collections_key
        made.forked_from = {"session_id": source.id, "request_id": wish.at}
        made.state, made.turn_count = state, source.turn_count if wish.at is None else until.turns
        made.message_count, made.transcript_bytes = until.last + 1, until.size_bytes
        has_files = wish.files and source.status != SessionStatus.CLOSED
        held = {tree for image in source.collections for tree in trees_of(image)}
        try:
            gone = [tree for tree in held if not self._garbage.hold(tree)]
            if gone:
                raise Conflict(
                    f"a collection that session {session_id} was made with is not kept any more; create another session",
                    code="collection_gone",
                )
            return await self._keep(
                principal,
                made,
                lambda db: rows.copy(
                    db,
                    principal.tenant_id,
                    session_id,
                    SessionId(made.id),
                    until=until.last,
                    now=made.created_at,
                ),
                files_of=session_id if has_files else None,
            )
        finally:
            self._garbage.let_go(held)

    async def _until(
        self, tenant_id: TenantId, session_id: SessionId, at: TurnId | None
    ) -> tuple[Session, rows.Extent, dict[str, Any]]:
        """The session, how much of its transcript there is, and its state, as of the end of `at`."""
        async with self._database.read() as db:
            source = await sessions.find(db, tenant_id, session_id)
            if source is None:
                raise NotFound(f"there is no session {session_id}", code="session_not_found")
            until = await rows.extent(db, tenant_id, session_id, until_turn=at)
            if at is None:
                return source, until, source.state
            turn = await turns.find(db, tenant_id, session_id, at)
            packed = await turns.state(db, tenant_id, at)
        _require_ended(turn, session_id, at)
        state = orjson.loads(await asyncio.to_thread(zlib.decompress, packed)) if packed is not None else {}
        return source, until, state

    async def export(self, tenant_id: TenantId, session_id: SessionId) -> dict[str, Any]:
        """The session and its transcript, as a document that is held whole; `Exports` writes any.

        Raises NotFound, TooLarge (`answer_too_large`).
        """
        async with self._database.read() as db:
            session = await sessions.find(db, tenant_id, session_id)
            if session is None:
                raise NotFound(f"there is no session {session_id}", code="session_not_found")
            if session.transcript_bytes + session.message_count * _OURS_BYTES > MAX_WHOLE_BYTES:
                raise TooLarge(
                    f"the document has more than {MAX_WHOLE_BYTES} bytes; ask for it by REST:"
                    f" GET /v1/sessions/{session_id}/export",
                    code="answer_too_large",
                    limit_bytes=MAX_WHOLE_BYTES,
                )
            messages = await sessions.messages(db, tenant_id, session_id)
        return await asyncio.to_thread(transcripts.document, session, messages)

    async def import_(
        self,
        principal: Principal,
        messages: Sequence[Mapping[str, Any]],
        *,
        profile: str,
        context: dict[str, Any],
        title: str | None,
    ) -> tuple[Session, tuple[Standing, ...]]:
        """A new session of `profile`, as it is now, with a transcript that was exported. Commits.

        Raises Invalid (`invalid_transcript`, a profile that can't be compiled), NotFound (`profile_not_found`), Refused,
        Unavailable.
        """
        bodies = await asyncio.to_thread(transcripts.checked, messages, MAX_TRANSCRIPT_BYTES)
        choice = await self._catalogue.choose(principal.tenant_id, profile)
        compiled = await self._catalogue.compiled(principal, profile)
        made = self._new(principal, profile, context, title)
        made.plan, made.model = compiled.plan, compiled.model[:200]
        made.collections, made.collections_key = [one.model_dump() for one in choice.images], choice.key
        texts = await asyncio.to_thread(_texts, bodies)
        made.message_count, made.transcript_bytes = len(texts), sum(len(text.encode()) for _, _, text in texts)
        return await self._keep(
            principal,
            made,
            lambda db: sessions.add_copied_messages(
                db, principal.tenant_id, SessionId(made.id), texts, made.created_at
            ),
        )

    def _new(self, principal: Principal, profile: str, context: dict[str, Any], title: str | None) -> Session:
        now = self._clock.now()
        return Session(
            id=new_session_id(),
            tenant_id=principal.tenant_id,
            member_id=principal.member_id,
            key_id=principal.credential_id,
            profile=profile,
            context=context,
            title=title,
            collections=[],
            state={},
            status=SessionStatus.SUSPENDED.value,
            created_at=now,
            last_active_at=now,
        )

    async def _keep(
        self,
        principal: Principal,
        made: Session,
        add_messages: Callable[[AsyncSession], Awaitable[None]],
        files_of: SessionId | None = None,
    ) -> tuple[Session, tuple[Standing, ...]]:
        """Take its place among its member's, and write it."""
        tenant_id, member_id, session_id = principal.tenant_id, principal.member_id, SessionId(made.id)
        text = Size(made.transcript_bytes)

        async def admit(size: Size) -> None:
            """Count it before anything of it is written, until the session's row says it."""
            assert files_of is not None, "nothing else is copied"
            await self._disk_use.rests(tenant_id, files_of, size)
            await self._admission.require_disk(principal, size)
            self._disk_use.expect(tenant_id, session_id, size)

        place = Place(session_id, member_id, is_new=True)
        standings = (await self._admission.take(principal, is_request=True, place=place)).standings
        try:
            await self._admission.require_disk(principal, text)
            self._disk_use.expect(tenant_id, session_id, text)
            if files_of is not None:
                size = await self._residency.copy_files(tenant_id, files_of, session_id, admit)
                made.disk_bytes, made.disk_files, made.disk_is_known = size.bytes, size.entries, True
            async with self._database.write() as db:
                await sessions.add(db, tenant_id, made)
                await add_messages(db)
                await emit(db, self._clock, tenant_id, EventType.SESSION_CREATED, _told(made))
        except BaseException as error:
            await asyncio.shield(self._undo(principal, session_id, has_files=files_of is not None))
            if isinstance(error, DomainError):
                error.standings = error.standings or standings
            raise
        finally:
            self._disk_use.settle(tenant_id, session_id)
        await self._admission.release_session(tenant_id, member_id, session_id)  # it sleeps
        self._telemetry.session_created(session_id=session_id, user_id=member_id, tenant_id=tenant_id)
        return made, standings

    async def _undo(self, principal: Principal, session_id: SessionId, *, has_files: bool) -> None:
        await self._admission.close_session(principal.tenant_id, principal.member_id, session_id)
        if has_files:
            await self._residency.evict(principal.tenant_id, session_id)


def _texts(bodies: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, str, JsonText]]:
    return [(turn_id, body["role"], JsonText(orjson.dumps(body).decode())) for turn_id, body in bodies]


def _require_ended(turn: Turn | None, session_id: SessionId, at: TurnId) -> None:
    if turn is None:
        raise NotFound(f"there is no execution {at} in session {session_id}", code="execution_not_found")
    if turn.status not in _WITH_TRANSCRIPT:
        raise Conflict(
            f"execution {at} is {turn.status}: a fork begins after one that was completed or cancelled",
            code="execution_not_ended",
        )


def _told(session: Session) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "profile": session.profile,
        "member_id": session.member_id,
        "forked_from": session.forked_from,
    }
