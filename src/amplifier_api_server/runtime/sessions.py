"""The open sessions of this runtime: opened once, one turn at a time, closed whole.

Owns which session is open and what runs in it. Invariant: opening is idempotent and single-flight; a session that lost
its host to an orphaned turn gets a new one, from the transcript, before its next turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime import memory
from amplifier_api_server.runtime.bundles.compiling import Defaults, Plan, compile_profile
from amplifier_api_server.runtime.bundles.library import Library
from amplifier_api_server.runtime.bundles.mentions import MentionResolver
from amplifier_api_server.runtime.bundles.plans import check_plan, resolver_of
from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing
from amplifier_api_server.runtime.host import Host, open_host
from amplifier_api_server.runtime.own_process import inside
from amplifier_api_server.runtime.own_process.outside import OWN, Outside, is_isolated, outside_of
from amplifier_api_server.runtime.own_process.process import most_processes
from amplifier_api_server.runtime.own_process.session import OwnSession, open_own
from amplifier_api_server.runtime.protocol import Failure, OpenedSession, OpenSession
from amplifier_api_server.runtime.turn_port import Services, TurnPort
from amplifier_api_server.runtime.turns import RunningTurn

log = logging.getLogger(__name__)

CLOSE_TURN_SECONDS = 3.0  # for a cancelled turn to end and be handed over before its session goes


class Session:
    """One open session. Made by `Sessions.open`."""

    def __init__(
        self, session_id: str, plan: Plan, folders: Mapping[str, Path], port: TurnPort, resolver: MentionResolver
    ) -> None:
        self.session_id = session_id
        self.plan = plan
        self.turn: RunningTurn | None = None  # the last one, running or not; its events stay until the next one starts
        self._task: asyncio.Task[None] | None = None
        self._folders = folders
        self._resolver = resolver
        self._port = port
        self._host: Host | None = None

    async def start(self, transcript: list[dict[str, Any]], state: dict[str, Any]) -> None:
        self._host = await open_host(
            self.session_id,
            self.plan,
            self._folders,
            self._port,
            transcript=transcript,
            state=state,
            resolver=self._resolver,
        )

    @property
    def is_lost(self) -> bool:
        """Its host could not be made anew after a turn that had to be abandoned."""
        return self._host is None and (self._task is None or self._task.done())

    @property
    def opened(self) -> OpenedSession:
        return OpenedSession(plan=self.plan, model=self.plan["model"])

    def running_turn_id(self) -> str | None:
        """Whose model calls are made by way of this session."""
        return self.running.turn.request_id if self.running is not None else None

    @property
    def running(self) -> RunningTurn | None:
        return self.turn if self.turn is not None and self.turn.result is None else None

    async def start_turn(self, request_id: str, prompt: str) -> RunningTurn:
        """Start a turn as a task of its own. Raises Conflicting (turn_running)."""
        while self._task is not None and not self._task.done():
            if self.turn is None or self.turn.result is None:
                raise Conflicting("turn_running", "a turn runs in this session; wait for it, or cancel it")
            await asyncio.wait({self._task})  # it was told ended already; what is left is short
        if self._host is None:
            raise Missing("no_session", "the session was lost with its last turn; open it again")
        if self.turn is not None and self.turn.turn.request_id == request_id:
            raise Conflicting("turn_exists", f"turn {request_id} was run already")
        self.turn = turn = RunningTurn(self.session_id, request_id, prompt, self._host)
        self._task = asyncio.create_task(self._run(turn), name=f"turn {request_id}")
        return turn

    def turn_of(self, request_id: str) -> RunningTurn:
        """Raises Missing (no_turn): it is over and another one came after it, or it never was here."""
        if self.turn is None or self.turn.turn.request_id != request_id:
            raise Missing("no_turn", f"turn {request_id!r:.100} is not here")
        return self.turn

    async def close(self, failure: Failure | None = None) -> None:
        """Cancel what runs, give it a little time to be handed over, and free everything. Idempotent."""
        if self._task is not None and not self._task.done():
            assert self.turn is not None
            self.turn.cancel(failure)
            await asyncio.wait({self._task}, timeout=CLOSE_TURN_SECONDS)
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=1)
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    async def _run(self, turn: RunningTurn) -> None:
        await turn.run()
        if turn.host_is_lost:
            try:
                await self._replace_host(turn)
            except Exception:  # the next turn says so; the control plane opens the session elsewhere
                log.exception("a session could not be made anew")

    async def _replace_host(self, turn: RunningTurn) -> None:
        lost, self._host = self._host, None
        self._port = TurnPort(self._port.services, self._port.working_dir)
        if lost is not None:
            await lost.close()
        await self.start(turn.after, turn.state_after)


class Sessions:
    """Of the runtime's main process, or of a session's own, where `is_own`: there is no other session there."""

    def __init__(self, *, is_own: bool = False) -> None:
        self._is_own = is_own
        self._open: dict[str, Session] = {}
        self._own: dict[str, OwnSession] = {}  # in processes of their own
        self._own_opening = 0
        self._opening: dict[str, asyncio.Task[Session | OwnSession]] = {}
        self._closing = False

    async def open(self, services: Services, session_id: str, body: OpenSession) -> tuple[Session | OwnSession, bool]:
        """The session, and whether it is new here. Raises Refused."""
        if (own := self._own.get(session_id)) is not None:
            return own, False
        if (held := self._open.get(session_id)) is not None and not held.is_lost:
            return held, False
        if self._closing:
            raise Conflicting("runtime_stopping", "this runtime is stopping", status=503)
        task = self._opening.get(session_id)
        if task is None:
            task = asyncio.create_task(self._do_open(services, session_id, body), name=f"open {session_id}")
            self._opening[session_id] = task
            task.add_done_callback(lambda done: self._opened(session_id, done))
        return await asyncio.shield(task), True

    def get(self, session_id: str) -> Session:
        """Raises Missing (no_session)."""
        session = self._open.get(session_id)
        if session is None:
            raise Missing("no_session", f"session {session_id!r:.100} is not open here")
        return session

    def own(self, session_id: str) -> OwnSession | None:
        """The session, if it has a process of its own."""
        session = self._own.pop(session_id, None)
        if session is not None:
            self._own[session_id] = session  # last: it was used last
        return session

    async def close(self, session_id: str) -> None:
        """Nothing to do when it isn't open."""
        if (opening := self._opening.get(session_id)) is not None:
            await asyncio.wait({opening})
        if (own := self._own.pop(session_id, None)) is not None:
            await own.close()
        session = self._open.pop(session_id, None)
        if session is not None:
            await session.close()
            memory.give_back_soon()

    async def close_all(self, failure: Failure) -> None:
        """Close every session; running turns fail with `failure`."""
        self._closing = True
        if self._opening:
            await asyncio.wait(set(self._opening.values()), timeout=1)
        sessions: list[Session | OwnSession] = [*self._open.values(), *self._own.values()]
        self._open, self._own = {}, {}
        await asyncio.gather(*(session.close(failure) for session in sessions), return_exceptions=True)

    def ids(self) -> list[str]:
        return sorted([*self._open, *self._own])

    def running_turns(self) -> list[str]:
        running = [one.running.turn.request_id for one in self._open.values() if one.running is not None]
        return sorted([*running, *(turn_id for one in self._own.values() for turn_id in one.running_turns)])

    async def _do_open(self, services: Services, session_id: str, body: OpenSession) -> Session | OwnSession:
        if (body.profile is None) == (body.plan is None):
            raise BadRequest("invalid_request", "exactly one of profile and plan should be given")
        plan = await asyncio.to_thread(plan_of, services, body)
        folder = services.workspace / session_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            detail = f"the session's folder can't be made: {error.strerror or error}"
            raise Conflicting("workspace_unavailable", detail, status=503) from error
        if is_isolated(plan) and not self._is_own:
            return await self._open_own(services, session_id, plan, body)
        outside = outside_of(plan, body.images, services.collections) if self._is_own else Outside({}, [])
        resolver = resolver_of(plan, services.collections, folder)
        session = Session(session_id, plan, outside.folders, TurnPort(services, folder), resolver)
        if self._is_own:
            await self._prepare(services, session, outside)
        await session.start(body.transcript, body.state)
        self._open[session_id] = session
        return session

    async def _open_own(self, services: Services, session_id: str, plan: Plan, body: OpenSession) -> OwnSession:
        """What is compiled is handed on: the process imports what comes from outside, and nothing else does."""
        while len(self._own) + self._own_opening >= most_processes() and await self._make_room():
            pass
        if len(self._own) + self._own_opening >= most_processes():
            detail = "the sandbox has no memory for one more session with modules from outside; close another one"
            raise Conflicting("too_many_processes", detail, status=503)
        made = body.model_copy(update={"profile": None, "plan": plan, "context": {}, "documents": {}})
        self._own_opening += 1
        try:
            session = await open_own(session_id, services, made, self._own_ended)
        finally:
            self._own_opening -= 1
        if not session.has_ended:
            self._own[session_id] = session
        return session

    async def _make_room(self) -> bool:
        """End the process that was idle for longest: its session is durable, and is opened again when it is asked for."""
        idle = next((one for one in self._own.values() if not one.running_turns), None)
        if idle is None:
            return False
        del self._own[idle.session_id]
        log.info("an idle session's process makes room for another one")
        await idle.close()
        return True

    def _own_ended(self, session: OwnSession) -> None:
        if self._own.get(session.session_id) is session:
            del self._own[session.session_id]

    async def _prepare(self, services: Services, session: Session, outside: Outside) -> None:
        """Once, before anything from outside is imported."""
        if self._open:
            raise Conflicting("not_your_process", "this process is another session's own")
        inside.import_ours([module_id for module_id, source in session.plan["modules"].items() if source == OWN])
        inside.add_packages(outside.packages)
        if services.door is not None:
            inside.point_at_gateway(await services.door.environment(services.door.register(session)))

    def _opened(self, session_id: str, task: asyncio.Task[Session | OwnSession]) -> None:
        self._opening.pop(session_id, None)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; asyncio must not report it when nobody does any more


def plan_of(services: Services, body: OpenSession) -> Plan:
    """The plan that a session is to be opened with: made of its profile, or as it was given back. Blocking."""
    if body.plan is not None:
        return check_plan(body.plan, body.images, services.collections)
    assert body.profile is not None
    library = Library(services.collections, body.images, body.documents)
    defaults = Defaults(services.claim.default_model, services.claim.default_provider)
    return compile_profile(library, body.profile, body.context, defaults).plan
