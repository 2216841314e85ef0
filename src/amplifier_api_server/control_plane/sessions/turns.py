"""Turns: beginning and watching them. `endings` ends them.

A turn runs in its runtime, not in a request: what is here starts it there and waits for word of its end.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.backend import Budget
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.router.errors import DialError, RouterError
from amplifier_api_server.control_plane.router.pool import Answer, Pool
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.live import LiveTurn, LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.settlement import Ending, Outcome
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.runtime.protocol import TurnStatus
from amplifier_api_server.tenants.errors import (
    Closed,
    DomainError,
    NotFound,
    RuntimeLost,
    TurnCancelled,
    TurnFailed,
    Unavailable,
)
from amplifier_api_server.tenants.ids import MemberId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.models import TurnCallback
from amplifier_api_server.tenants.repository import callbacks, sessions, turns

log = structlog.get_logger(__name__)

_RECORD_SECONDS = 5.0  # for an end to be recorded that could not be at first; it is tried again every second
_EVENTS = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]
_WATCH = [(b"accept", b"text/event-stream")]
_RESULT = [(b"accept", b"application/json"), (b"content-type", b"application/json")]


class Turns:
    """Every turn of this control plane."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        live: LiveTurns,
        residency: Residency,
        endings: Endings,
        running: RunningTurns,
        pool: Pool,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._database = database
        self.live = live
        self._residency = residency
        self._endings = endings
        self._running = running
        self._pool = pool
        self._clock = clock
        self._telemetry = telemetry
        self._is_draining = False

    def is_awake(self, session_id: SessionId) -> bool:
        """Whether the session is open in a runtime now."""
        return self._residency.home(session_id) is not None

    def member_of(self, tenant_id: TenantId, session_id: SessionId) -> MemberId | None:
        """Whose session it is, where it is awake and the tenant's; None says nothing."""
        return self._residency.member_of(tenant_id, session_id)

    # Beginning.

    async def record(
        self, principal: Principal, session_id: SessionId, turn_id: TurnId, callback: TurnCallback | None = None
    ) -> LiveTurn:
        """Record a turn as running, with whom to call back at its end. Commits.

        The caller has taken the limits, under `turn_id`; once this has returned, the settlement gives them back. Raises
        NotFound, Closed, Conflict (`turn_running`), Unavailable.
        """
        if self._is_draining:
            raise Unavailable("the server is stopping; try again in a moment", code="stopping", retry_after_seconds=5)
        turn = LiveTurn(turn_id, principal.tenant_id, session_id, principal.member_id, principal.credential_id)
        turn.principal = principal
        home = self._residency.home(session_id)
        if home is not None:
            turn.runtime_id, turn.address = home
        turn.wants_callback = callback is not None
        await self._record(turn, callback)
        self.live.add(turn)
        self._telemetry.running_turns.set(len(self.live))
        return turn

    async def place(self, turn: LiveTurn, budget: Budget | None, reserved: int) -> None:
        """Bring a recorded turn's session to a runtime, where `run` or `open_stream` starts it. Commits.

        Raises Closed, Refused, Unavailable; the turn is settled as failed then.
        """
        assert turn.principal is not None, "it is of this process"
        try:
            # Now that the turn can be seen nobody suspends its session any more; somebody may have, meanwhile.
            home = self._residency.home(turn.session_id)
            if home is None or home != (turn.runtime_id, turn.address):
                runtime_id, address = await self._residency.ensure(turn.principal, turn.session_id)
                async with self._database.write() as db:
                    await turns.place(db, turn.tenant_id, turn.id, runtime_id)
                turn.runtime_id, turn.address = runtime_id, address
            if turn.runtime_id is None:
                raise Unavailable("the session has no sandbox", code="no_runtime")
            _require_wanted(turn)
            self._running.begin(
                MeteredTurn(
                    tenant_id=turn.tenant_id,
                    member_id=turn.member_id,
                    session_id=turn.session_id,
                    turn_id=turn.id,
                    runtime_id=turn.runtime_id,
                    budget=budget,
                    reserved=reserved,
                    tier=turn.principal.tier,
                )
            )
        except DomainError as error:
            await self._endings.settle(turn, _not_begun(error))
            raise
        except BaseException:
            await asyncio.shield(
                self._endings.settle(turn, Outcome(TurnStatus.FAILED, error=TurnFailed("it could not begin")))
            )
            raise

    async def _record(self, turn: LiveTurn, callback: TurnCallback | None) -> None:
        turn.started_at = now = self._clock.now()
        async with self._database.write() as db:
            if not await sessions.touch(db, turn.tenant_id, turn.session_id, now):
                if await sessions.find(db, turn.tenant_id, turn.session_id) is None:
                    raise NotFound(f"there is no session {turn.session_id}", code="session_not_found")
                raise Closed(f"session {turn.session_id} is closed; create another one")
            values: dict[str, Any] = {
                "id": turn.id,
                "session_id": turn.session_id,
                "member_id": turn.member_id,
                "key_id": turn.key_id,
                "runtime_id": turn.runtime_id,
                "response": "",
                "tool_calls": [],
                "problem": None,
                "last_event": 0,
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "total_tokens": 0,
                "cached_tokens": 0,
                "reasoning_tokens": 0,
                "cost_microdollars": 0,
                "started_at": now,
            }
            await turns.begin(db, turn.tenant_id, values)
            if callback is not None:
                await callbacks.add(db, turn.tenant_id, callback)
            told = {"session_id": turn.session_id, "request_id": turn.id, "member_id": turn.member_id}
            await emit(db, self._clock, turn.tenant_id, EventType.EXECUTION_STARTED, told)

    async def open_stream(self, turn: LiveTurn, prompt: str) -> Answer:
        """Start the turn in its runtime; its events as they are made. Raises a DomainError; the turn is settled then."""
        return await self._start(turn, prompt, _EVENTS, head_timeout_seconds=30)

    async def run(self, turn: LiveTurn, prompt: str) -> protocol.TurnResult:
        """Start the turn in its runtime and wait for its end, as it is recorded. Hanging up does not end it.

        Raises InsufficientStorage or Unavailable where its end can't be recorded now.
        """
        self._endings.beside(self._endings.until_end(turn, lambda: self._result(turn, prompt)))
        ends: set[asyncio.Future[Any]] = {turn.ended, turn.unrecorded}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not turn.ended.done():
            await asyncio.wait({turn.ended}, timeout=_RECORD_SECONDS)
        if not turn.ended.done():
            raise turn.unrecorded.result()
        return turn.ended.result()

    async def _result(self, turn: LiveTurn, prompt: str) -> None:
        answer = await self._start(turn, prompt, _RESULT, head_timeout_seconds=None)
        await answer.read(protocol.MAX_CHECKPOINT_BYTES, 30)

    async def _start(
        self, turn: LiveTurn, prompt: str, headers: list[tuple[bytes, bytes]], *, head_timeout_seconds: float | None
    ) -> Answer:
        """POST the turn; once more where it did not begin.

        After a dial failure that is on another runtime, since nothing was sent; in the same one where that has the session no
        more, because the session's own process ended since.
        """
        body = protocol.StartTurn(prompt=prompt).model_dump_json().encode()
        path = protocol.Path.TURN.format(session_id=turn.session_id, request_id=turn.id)
        try:
            try:
                answer = await self._post(turn, path, headers, body, head_timeout_seconds)
            except DialError as error:
                await self._move(turn, str(error))
                answer = await self._post(turn, path, headers, body, head_timeout_seconds)
            if answer.status == 404:  # noqa: PLR2004 - RFC 9110, 15.5.5: `no_session`
                answer.close()
                await self._reopen(turn)
                answer = await self._post(turn, path, headers, body, head_timeout_seconds)
        except RouterError as error:
            ending = await self._endings.lost(
                turn, str(error), code="no_runtime" if isinstance(error, DialError) else "runtime_lost"
            )
            raise _as_error(ending) from error
        except DomainError as error:
            await self._endings.settle(turn, _not_begun(error))
            raise
        if answer.status == 200:  # noqa: PLR2004 - RFC 9110, 15.3.1
            return answer
        answer.close()
        log.error("a runtime refused a turn", request_id=turn.id, status=answer.status, runtime_id=turn.runtime_id)
        refused = TurnFailed(f"the sandbox refused the turn ({answer.status})", code="runtime_refused")
        await self._endings.settle(turn, Outcome(TurnStatus.FAILED, error=refused))
        self._endings.expel_soon(turn)
        raise refused

    async def _post(
        self,
        turn: LiveTurn,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        head_timeout_seconds: float | None,
    ) -> Answer:
        assert turn.address is not None, "begin() has placed it"
        _require_wanted(turn)
        turn.is_sent = True
        try:
            answer = await self._pool.request(
                turn.address, "POST", path, headers=headers, body=body, head_timeout_seconds=head_timeout_seconds
            )
        except DialError:
            turn.is_sent = False
            raise
        turn.answers.append(answer)
        return answer

    async def _move(self, turn: LiveTurn, why: str) -> None:
        """Bring a turn that nothing was sent of, and its session, to another runtime. Raises DomainError."""
        assert turn.runtime_id is not None, "begin() has placed it"
        assert turn.principal is not None, "it is of this process"
        gone, turn.runtime_id, turn.address = turn.runtime_id, None, None
        log.info("a runtime was gone before the turn began", request_id=turn.id, runtime_id=gone, why=why)
        await self._residency.abandon(gone, f"it can't be reached: {why}")
        turn.runtime_id, turn.address = await self._residency.ensure(turn.principal, turn.session_id)
        self._running.move(turn.id, turn.runtime_id)
        async with self._database.write() as db:
            await turns.place(db, turn.tenant_id, turn.id, turn.runtime_id)

    async def _reopen(self, turn: LiveTurn) -> None:
        """Open the session anew for a turn that its runtime did not begin: it has not got the session any more.

        One that has a process of its own there may have lost it since its last turn. Raises DomainError.
        """
        assert turn.runtime_id is not None, "begin() has placed it"
        assert turn.principal is not None, "it is of this process"
        log.info("a session was not open in its runtime any more", request_id=turn.id, runtime_id=turn.runtime_id)
        turn.is_sent = False
        gone, turn.runtime_id, turn.address = turn.runtime_id, None, None
        await self._residency.lose(turn.tenant_id, turn.session_id, gone)
        turn.runtime_id, turn.address = await self._residency.ensure(turn.principal, turn.session_id)
        if turn.runtime_id != gone:
            self._running.move(turn.id, turn.runtime_id)
            async with self._database.write() as db:
                await turns.place(db, turn.tenant_id, turn.id, turn.runtime_id)

    async def watch(self, turn: LiveTurn, after: int) -> Answer | None:
        """The events of a running turn from the one after `after`; None when its runtime does not have it any more."""
        if turn.address is None:
            return None
        path = protocol.Path.EVENTS.format(session_id=turn.session_id, request_id=turn.id) + f"?after={after}"
        try:
            answer = await self._pool.request(turn.address, "GET", path, headers=_WATCH, head_timeout_seconds=5)
        except RouterError:
            return None
        if answer.status != 200:  # noqa: PLR2004 - RFC 9110, 15.3.1
            answer.close()
            return None
        turn.answers = [one for one in turn.answers if not one.is_closed] + [answer]
        return answer

    async def drain(self, timeout_seconds: float, hurry: asyncio.Event | None = None) -> None:
        """Take no new turn; let running ones go on for so long, or until somebody hurries, then end them."""
        self._is_draining = True
        if running := [turn.ended for turn in self.live.all()]:
            hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
            ended = asyncio.ensure_future(asyncio.wait(running))
            await asyncio.wait({hurried, ended}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            ended.cancel()
        await self._endings.end_all(
            Unavailable("the server is stopping; the session can go on when it is back", code="stopping")
        )


def _require_wanted(turn: LiveTurn) -> None:
    """Raise why a turn was ended while its session woke up: it must not begin any more."""
    if turn.why_ended is not None:
        raise turn.why_ended
    if turn.settling.locked() or turn.ended.done():
        raise TurnCancelled("the turn was ended before it began")


def _not_begun(error: DomainError) -> Outcome:
    return Outcome(TurnStatus.CANCELLED if isinstance(error, TurnCancelled) else TurnStatus.FAILED, error=error)


def _as_error(ending: Ending) -> DomainError:
    found = ending.result.problem or {}
    return RuntimeLost(str(found.get("detail", "the sandbox went away")), code=str(found.get("code", "runtime_lost")))
