"""Residency: which runtime has a session open, bringing it there and taking it away.

Owns waking, suspending and the end of a session's stay. Invariants: a session is open in at most one runtime; waking is
single-flight (a lock for each session); a session leaves a runtime only between turns, or with the runtime; a session has
its place among its member's active ones for as long as a runtime has it open, however it comes there and goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from weakref import WeakValueDictionary

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import disk_full
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet, Need
from amplifier_api_server.control_plane.pods.launcher import Address, LaunchError, NoRoomError, NotCopiableError
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.sessions.live import LiveTurns
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import (
    Closed,
    Conflict,
    DomainError,
    Invalid,
    NotFound,
    Unavailable,
    Unreadable,
)
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId
from amplifier_api_server.tenants.json_columns import spoiled_in
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.models import Session
from amplifier_api_server.tenants.repository import sessions, transcripts
from amplifier_api_server.tenants.repository.transcripts import Written

log = structlog.get_logger(__name__)

_TRIES = 2  # the runtime may die between being chosen and being asked; the second one is fresh
_FULL = "too_many_processes"  # a runtime's word for having no memory for one more session with a process of its own
_AWAKE = (SessionStatus.ACTIVE, SessionStatus.SUSPENDED, SessionStatus.FAILED)


class Places(Protocol):
    """The members' limits on active sessions."""

    async def keep_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None: ...

    async def release_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None: ...


class Residency:
    """Where sessions live."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        database: Database,
        live: LiveTurns,
        places: Places,
        folder_of: Callable[[str], str],
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._database = database
        self._live = live
        self._places = places
        self._clock = clock
        self._folder_of = folder_of  # content hash -> the unpacked collection's folder
        self._home: dict[SessionId, RuntimeId] = {}
        self._leaving: set[SessionId] = set()
        self._locks: WeakValueDictionary[SessionId, asyncio.Lock] = WeakValueDictionary()

    def _lock(self, session_id: SessionId) -> asyncio.Lock:
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()
        return lock

    def tenant_of(self, runtime_id: RuntimeId) -> TenantId | None:
        """Whose runtime it is; None for one that nobody has claimed, or that is gone."""
        return self._fleet.tenants.get(runtime_id)

    def home(self, session_id: SessionId) -> tuple[RuntimeId, Address] | None:
        """Where the session is open now, and stays."""
        runtime_id = self._home.get(session_id) if session_id not in self._leaving else None
        address = self._fleet.address(runtime_id) if runtime_id is not None else None
        return (runtime_id, address) if runtime_id is not None and address is not None else None

    def member_of(self, tenant_id: TenantId, session_id: SessionId) -> MemberId | None:
        """Whose session it is, where it is open now and the tenant's; None says nothing."""
        runtime_id = self._home.get(session_id)
        if runtime_id is None or self._fleet.tenants.get(runtime_id) != tenant_id:
            return None
        return self._fleet.sessions.get(runtime_id, {}).get(session_id)

    def _need(self, principal: Principal, session: Session) -> Need:
        """A runtime that has the session's collections, and no others."""
        key = session.collections_key
        trees = {tree for one in _images(session) for tree in one.trees()}
        return Need(principal, key, {tree: self._folder_of(tree) for tree in trees} if key else None)

    async def open_new(
        self, principal: Principal, session: Session, documents: Mapping[str, str]
    ) -> tuple[RuntimeId, protocol.OpenedSession]:
        """Open a session that has no row yet: the runtime compiles its profile, with the tenant's own `documents`.

        Raises Invalid, NotFound, Unavailable.
        """
        need = self._need(principal, session)
        body = protocol.OpenSession(
            profile=session.profile, images=_images(session), documents=dict(documents), context=session.context
        )
        async with self._lock(SessionId(session.id)):
            try:
                return await self._open(session, need, body)
            except BaseException:
                await self._fleet.launcher.forget(need.tenant_id, SessionId(session.id))
                raise

    async def ensure(self, principal: Principal, session_id: SessionId) -> tuple[RuntimeId, Address]:
        """The session, open: where it is, or where it has just been brought with its whole history.

        The caller has found it to be the principal's tenant's. Raises NotFound, Closed, Refused, Unavailable.
        """
        tenant_id = principal.tenant_id
        found = self.home(session_id)
        if found is not None:
            return found
        async with self._lock(session_id):
            found = self.home(session_id)
            if found is not None:
                return found
            session, history = await self._read(tenant_id, session_id)
            texts = [one.text for one in history]
            try:
                runtime_id, _ = await self._open(
                    session, self._need(principal, session), _reopening(session, history), texts
                )
            except (Invalid, NotFound, Unreadable) as error:
                await self._fail(tenant_id, session_id, error)
                raise
            async with self._database.write() as db:
                stays = await sessions.change(
                    db,
                    tenant_id,
                    session_id,
                    expected=_AWAKE,
                    status=SessionStatus.ACTIVE.value,
                    runtime_id=runtime_id,
                    failure=None,
                )
            if not stays:
                await self._leave(tenant_id, session_id)
                raise Closed(f"session {session_id} was closed; create another one")
            log.info("session awake", session_id=session_id, runtime_id=runtime_id)
        found = self.home(session_id)
        if found is None:
            raise Unavailable(
                "the sandbox ended as the session woke up; try again", code="no_runtime", retry_after_seconds=1
            )
        return found

    async def _fail(self, tenant_id: TenantId, session_id: SessionId, error: DomainError) -> None:
        """What it was made of can't be opened any more: say so, until a later call finds that it can."""
        failure = {"code": error.stable_code, "detail": error.detail[:1000]}
        async with self._database.write() as db:
            is_new = await sessions.change(
                db,
                tenant_id,
                session_id,
                expected=_AWAKE,
                status=SessionStatus.FAILED.value,
                failure=failure,
                runtime_id=None,
            )
            if is_new:
                told = {"session_id": session_id, "code": error.stable_code}
                await emit(db, self._clock, tenant_id, EventType.SESSION_FAILED, told)
        log.warning("session failed", session_id=session_id, code=error.stable_code)

    async def abandon(self, runtime_id: RuntimeId, reason: str) -> None:
        """End a runtime that can't be reached: its sessions are free for another one when this returns."""
        await self._fleet.end(runtime_id, reason)

    async def lose(self, tenant_id: TenantId, session_id: SessionId, runtime_id: RuntimeId) -> None:
        """Its runtime has not got the session any more, and goes on with its others: the session is free for a new home."""
        async with self._lock(session_id):
            if self._home.get(session_id) == runtime_id:
                await self._leave(tenant_id, session_id)

    async def _read(self, tenant_id: TenantId, session_id: SessionId) -> tuple[Session, list[Written]]:
        async with self._database.read() as db:
            session = await sessions.find(db, tenant_id, session_id)
            if session is None:
                raise NotFound(f"there is no session {session_id}", code="session_not_found")
            if session.status == SessionStatus.CLOSED:
                raise Closed(f"session {session_id} is closed; create another one")
            return session, await transcripts.written(db, tenant_id, session_id)

    async def _open(
        self, session: Session, need: Need, body: protocol.OpenSession, transcript: Sequence[str] = ()
    ) -> tuple[RuntimeId, protocol.OpenedSession]:
        session_id = SessionId(session.id)
        tries = _TRIES
        while tries > 0:
            tries -= 1
            runtime_id = await self._fleet.acquire(need)
            here = self._fleet.sessions.get(runtime_id)
            if here is None:
                continue  # it has just ended
            # Counted before it is there, so that the runtime is not taken for idle meanwhile.
            here[session_id] = MemberId(session.member_id)
            try:
                await self._fleet.launcher.attach(runtime_id, need.tenant_id, session_id)
                address = self._fleet.address(runtime_id)
                if address is None:
                    raise LaunchError("the runtime ended")
                opened = await self._fleet.calls.open_session(address, session_id, body, transcript)
            except RuntimeRefused as error:
                here.pop(session_id, None)
                await self._fleet.launcher.detach(runtime_id, need.tenant_id, session_id)
                # One that is full of others says nothing of the next; of those there are as many as the tenant may have.
                tries += 1 if error.failure.code == _FULL and here else 0
                if error.failure.code == _FULL and tries > 0:
                    log.info("a runtime takes no more sessions", runtime_id=runtime_id, why=error.failure.detail)
                    need = replace(need, avoid=need.avoid | {runtime_id})
                    continue
                raise _as_domain_error(error) from error
            except NoRoomError as error:  # another runtime has no more of it
                here.pop(session_id, None)
                raise disk_full() from error
            except (RouterError, LaunchError) as error:
                here.pop(session_id, None)
                log.warning("a session could not be opened", runtime_id=runtime_id, tries_left=tries, error=str(error))
                await self._fleet.end(runtime_id, f"it could not open a session: {error}")
            except BaseException:
                here.pop(session_id, None)
                raise
            else:
                self._home[session_id] = runtime_id
                # Given back meanwhile where the session left another runtime for this one.
                await self._places.keep_session(need.tenant_id, MemberId(session.member_id), session_id)
                return runtime_id, opened
        raise Unavailable("the sandbox could not open the session; try again", code="no_runtime", retry_after_seconds=2)

    async def suspend(self, tenant_id: TenantId, session_id: SessionId) -> bool:
        """Take a session that no turn runs in out of its runtime; False where a turn runs or it is not active."""
        async with self._lock(session_id):
            if self._live.of_session(session_id) is not None:
                return False
            # From here on a turn that begins finds no home, and waits for the lock.
            self._leaving.add(session_id)
            try:
                async with self._database.write() as db:
                    done = await sessions.change(
                        db,
                        tenant_id,
                        session_id,
                        expected=[SessionStatus.ACTIVE],
                        status=SessionStatus.SUSPENDED.value,
                        runtime_id=None,
                    )
                if done:
                    await self._leave(tenant_id, session_id)
                    log.info("session suspended", session_id=session_id)
                return done
            finally:
                self._leaving.discard(session_id)

    async def copy_files(
        self, tenant_id: TenantId, source: SessionId, target: SessionId, admit: Callable[[Size], Awaitable[None]]
    ) -> Size:
        """Give a session that is nowhere yet a copy of another one's folder, which is at rest meanwhile; what that takes.

        Nothing is copied before `admit` has returned for that.

        Raises Conflict (`turn_running`, `files_not_copiable`), InsufficientStorage, Unavailable.
        """
        await self.suspend(tenant_id, source)
        async with self._lock(source):
            # It may have been woken since, or a turn of it runs: its folder is in a sandbox, which may be writing there.
            if self._home.get(source) is not None:
                raise Conflict(
                    f"an execution is running in session {source}; wait for its end, or fork it without files",
                    code="turn_running",
                )
            try:
                size = await self._fleet.launcher.size(tenant_id, source) or Size()
                await admit(size)
                await self._fleet.launcher.copy(tenant_id, source, target)
            except NotCopiableError as error:
                raise Conflict(
                    f"{error}; delete some or nest them less deeply, or fork it without files",
                    code="files_not_copiable",
                ) from error
            except NoRoomError as error:
                raise disk_full() from error
            except LaunchError as error:
                raise Unavailable(str(error), code="files_not_copied", retry_after_seconds=2) from error
        return size

    async def evict(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """Take a session that was closed out of its runtime, and delete its folder."""
        async with self._lock(session_id):
            await self._leave(tenant_id, session_id)
            await self._fleet.launcher.forget(tenant_id, session_id)

    async def _leave(self, tenant_id: TenantId, session_id: SessionId) -> None:
        runtime_id = self._home.pop(session_id, None)
        if runtime_id is None:
            return
        member_id = self._fleet.sessions.get(runtime_id, {}).get(session_id)
        try:
            await self._take_out(runtime_id, tenant_id, session_id)
        finally:
            here = self._fleet.sessions.get(runtime_id)
            if here is not None:
                here.pop(session_id, None)
            if member_id is not None:
                await self._places.release_session(tenant_id, member_id, session_id)
        if here is not None and not here:
            await self._fleet.set_idle(runtime_id, idle=True)

    async def _take_out(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        address = self._fleet.address(runtime_id)
        if address is not None:
            try:
                await self._fleet.calls.close_session(address, session_id)
            except (RouterError, RuntimeRefused) as error:
                # It keeps the session's memory, and perhaps a process in its folder: not one to go on with.
                log.warning("a runtime did not close a session", runtime_id=runtime_id, error=str(error))
                await self._fleet.end(runtime_id, "it did not close a session")
        await self._fleet.launcher.detach(runtime_id, tenant_id, session_id)

    async def runtime_gone(self, runtime_id: RuntimeId, tenant_id: TenantId | None) -> None:
        """The runtime has ended: its sessions are suspended, and their folders are free for another one."""
        for session_id, member_id in list(self._fleet.sessions.get(runtime_id, {}).items()):
            is_elsewhere = self._home.get(session_id, runtime_id) != runtime_id  # somebody has woken it meanwhile
            if not is_elsewhere:
                self._home.pop(session_id, None)
            if tenant_id is not None:
                if not is_elsewhere:
                    await self._places.release_session(tenant_id, member_id, session_id)
                try:
                    await self._fleet.launcher.detach(runtime_id, tenant_id, session_id)
                except LaunchError as error:
                    log.warning("a session's folder was not taken back", session_id=session_id, error=str(error))
        async with self._database.write() as db:
            await sessions.leave_runtimes_of_all_tenants(db, [runtime_id])


def _images(session: Session) -> list[protocol.Image]:
    return [protocol.Image.model_validate(one) for one in session.collections]


def require_readable(session: Session, history: Sequence[Written]) -> None:
    """Raises Unreadable for what no runtime may be given: it would go on as another session."""
    broken = [*spoiled_in(session), *(f"message {one.seq}" for one in history if one.is_spoiled)]
    if broken:
        detail = f"session {session.id} can't go on: {', '.join(broken[:5])} can't be read from the database"
        raise Unreadable(f"{detail}; create another one, or ask the operator of this service")


def _reopening(session: Session, history: Sequence[Written]) -> protocol.OpenSession:
    require_readable(session, history)
    return protocol.OpenSession(
        plan=session.plan,
        profile=None if session.plan is not None else session.profile,
        images=_images(session),
        context=session.context,
        state=session.state,
        turn_number=session.turn_count,
    )


def _as_domain_error(error: RuntimeRefused) -> Exception:
    failure = error.failure
    match error.status:
        case 404:
            return NotFound(failure.detail, code=failure.code)
        case 400 | 413 | 422:
            return Invalid(failure.detail, code=failure.code)
        case _:
            return Unavailable(failure.detail, code=failure.code, retry_after_seconds=failure.retry_after_seconds or 2)
