"""Executions: running prompts and following them, for every door. Takes a principal and plain values.

Owns what an execution takes of the limits and gives back, and how it is begun: while the caller waits, or beside it. An
execution runs on when whoever began it, or follows it, goes away. What another tenant owns does not exist here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.limits.admission import Admission, Admitted, Place
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.router.errors import IdleTimeout, RouterError
from amplifier_api_server.control_plane.router.pool import Answer
from amplifier_api_server.control_plane.sessions.callbacks import Callbacks, WantedCallback
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.frames import Frames, TurnEvent
from amplifier_api_server.control_plane.sessions.live import LiveTurn
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.runtime.protocol import TurnResult
from amplifier_api_server.tenants.errors import DomainError, Unavailable
from amplifier_api_server.tenants.ids import MemberId, SessionId, TenantId, TurnId, new_turn_id

log = structlog.get_logger(__name__)

_ENDED_SECONDS = 10.0  # longer than a runtime's stream and the settlement of its turn are ever apart
_NOT_YET_SECONDS = 0.05  # a turn that is there, and that its runtime does not tell of yet
_READ_SECONDS = 30.0  # for the last readers of a turn whose session goes away with it; others read it from the record
_SILENCE_SECONDS = 15.0  # between looks at whether a turn has ended whose runtime says nothing


@dataclass(frozen=True, slots=True)
class Begun:
    """An execution that is recorded as running, and how the limits stand that it took."""

    turn: LiveTurn
    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class OneShot:
    """A session that is made for one execution, and closes with it."""

    session_id: SessionId
    profile: str
    context: dict[str, Any]


class Executions:
    """The executions of all tenants, each seen by its own."""

    def __init__(
        self, *, turns: Turns, endings: Endings, sessions: Sessions, admission: Admission, callbacks: Callbacks
    ) -> None:
        self._turns = turns
        self._endings = endings
        self._sessions = sessions
        self._admission = admission
        self._callbacks = callbacks

    async def begin(
        self,
        principal: Principal,
        session: SessionId | OneShot,
        turn_id: TurnId | None = None,
        *,
        callback: WantedCallback | None = None,
    ) -> Begun:
        """Take an execution's limits, record it, and have its session awake: it is ready for `run` or `open_stream`.

        Raises NotFound, Closed, Conflict (`turn_running`), Refused, Unavailable; nothing is held then. `callback` is called
        also where it was recorded and did not begin.
        """
        turn_id = turn_id or new_turn_id()
        place, admitted = await self._admitted(principal, session, turn_id)
        async with _Given(self, principal, place, turn_id, admitted):
            turn = await self._record(principal, place, turn_id, callback)
            await self._place(turn, admitted.tokens)
        return Begun(turn, admitted.standings)

    async def start(
        self,
        principal: Principal,
        session: SessionId | OneShot,
        prompt: str,
        turn_id: TurnId | None = None,
        *,
        callback: WantedCallback | None = None,
    ) -> Begun:
        """Begin an execution and leave it to itself: its session wakes, and it runs, when this has returned.

        Raises as `begin` does, but for what happens as the session wakes: that is how the execution ends.
        """
        turn_id = turn_id or new_turn_id()
        place, admitted = await self._admitted(principal, session, turn_id)
        async with _Given(self, principal, place, turn_id, admitted):
            turn = await self._record(principal, place, turn_id, callback)
        self._endings.beside(self._carry_on(principal, turn, place, admitted, prompt))
        return Begun(turn, admitted.standings)

    async def _record(
        self, principal: Principal, place: Place, turn_id: TurnId, callback: WantedCallback | None
    ) -> LiveTurn:
        session_id, row = place.session_id, None
        if callback is not None:
            row = self._callbacks.row(principal.tenant_id, session_id, turn_id, callback)
        turn = await self._turns.record(principal, session_id, turn_id, row)
        if callback is not None:
            turn.ended.add_done_callback(lambda _: self._callbacks.wake())
        if place.is_new:
            turn.closes_session = True
            turn.ended.add_done_callback(lambda _: self._endings.beside(self._clear(turn)))
        return turn

    async def _clear(self, turn: LiveTurn) -> None:
        """Its session closed with it: clear that away, once nobody reads any more what its runtime tells."""
        try:
            left = _READ_SECONDS
            while turn.is_read and left > 0:
                left -= _NOT_YET_SECONDS
                await asyncio.sleep(_NOT_YET_SECONDS)
            await self._sessions.clear(turn.tenant_id, turn.session_id)
        except Exception:  # the sweep tries it again
            log.exception("a session could not be taken out of its runtime", session_id=turn.session_id)

    async def _carry_on(
        self, principal: Principal, turn: LiveTurn, place: Place, admitted: Admitted, prompt: str
    ) -> None:
        try:
            async with _Given(self, principal, place, turn.id, admitted):
                await self._place(turn, admitted.tokens)
            await self._turns.run(turn, prompt)
        except DomainError as error:
            log.info("a background execution did not begin", request_id=turn.id, error=error.stable_code)
        except Exception:
            log.exception("a background execution failed", request_id=turn.id)

    async def _place(self, turn: LiveTurn, reserved: int) -> None:
        assert turn.principal is not None, "it is of this process"
        await self._turns.place(turn, self._admission.budget_of(turn.principal, turn.id), reserved)

    async def run(self, begun: Begun, prompt: str) -> TurnResult:
        """Run it to its end; how it ended, as it is recorded. Hanging up does not end it."""
        return await self._turns.run(begun.turn, prompt)

    async def open_stream(self, begun: Begun, prompt: str) -> Answer:
        """Run it; its events as bytes, as they are made. Raises a DomainError; it is settled then."""
        return await self._turns.open_stream(begun.turn, prompt)

    async def launch(
        self,
        principal: Principal,
        session: SessionId | OneShot,
        prompt: str,
        turn_id: TurnId | None = None,
        *,
        callback: WantedCallback | None = None,
    ) -> Launched:
        """Run it, for somebody who reads its events one by one. Raises as `begin` and `open_stream` do."""
        begun = await self.begin(principal, session, turn_id, callback=callback)
        return Launched(self, begun.turn, await self.open_stream(begun, prompt))

    def live(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> LiveTurn | None:
        """The execution, while it runs."""
        return self._turns.live.get(tenant_id, session_id, turn_id)

    async def watch(
        self, principal: Principal, session_id: SessionId, turn_id: TurnId, after: int = 0
    ) -> AsyncIterator[TurnEvent]:
        """The events of an execution that runs, will run or has run, from the one after number `after`, to its end.

        A reader that is slow slows the sandbox; one that leaves (closes the iterator) ends nothing. Raises NotFound.
        """
        tenant_id = principal.tenant_id
        turn = self.live(tenant_id, session_id, turn_id)
        frames = Frames(turn_id, after)
        if turn is not None:
            async for event in self.tell(turn, await self.answer_of(turn, after), frames):
                yield event
            return
        recorded = await self._sessions.recorded_events(tenant_id, session_id, turn_id)
        for event in frames.feed(recorded):
            yield event

    async def tell(self, turn: LiveTurn, answer: Answer | None, frames: Frames) -> AsyncIterator[TurnEvent]:
        """The events of a turn that runs, from its runtime's stream; what that does not tell, as it is recorded."""
        if answer is not None:
            async for event in self._follow(turn, answer, frames):
                yield event
                if event.is_last:
                    return
        await ended(turn)
        recorded = await self._sessions.recorded_events(turn.tenant_id, turn.session_id, turn.id)
        for event in frames.feed(recorded):
            yield event

    def leave(self, turn: LiveTurn, answer: Answer) -> None:
        """Nobody reads this stream: somebody has to learn how its turn ends. Call it once."""
        self._endings.follow(turn, answer)

    async def answer_of(self, turn: LiveTurn, after: int) -> Answer | None:
        """The stream of a turn that runs, as bytes; None once it has ended, or where its runtime does not tell of it.

        Waits for one whose session is still waking up.
        """
        waited = 0.0  # for a runtime that has the turn, and does not tell of it
        while not turn.ended.done() and waited < _ENDED_SECONDS:
            answer = await self._turns.watch(turn, after)
            if answer is not None:
                return answer
            waited += _NOT_YET_SECONDS if turn.is_sent else 0.0
            await asyncio.wait({turn.ended}, timeout=_NOT_YET_SECONDS)
        return None

    async def _follow(self, turn: LiveTurn, answer: Answer, frames: Frames) -> AsyncIterator[TurnEvent]:
        """What the runtime says, until it says no more of the turn or the turn has ended without it."""
        try:
            while True:
                try:
                    chunk = await answer.next(_SILENCE_SECONDS)
                except IdleTimeout:
                    if turn.ended.done():
                        return
                    continue
                if chunk is None:
                    return
                for event in frames.feed(chunk):
                    turn.last_event = max(turn.last_event, event.number)
                    yield event
        except RouterError as error:
            await self._endings.lost(turn, str(error))
        finally:
            self._endings.follow(turn, answer)

    async def _admitted(
        self, principal: Principal, session: SessionId | OneShot, turn_id: TurnId
    ) -> tuple[Place, Admitted]:
        if isinstance(session, OneShot):
            place = Place(session.session_id, principal.member_id, is_new=True, is_one_shot=True)
            _, admitted = await self._sessions.make(principal, place, session.profile, session.context, turn_id)
            return place, admitted
        place = Place(session, await self._member_of(principal, session))
        return place, await self._admission.take(principal, is_request=True, place=place, turn_id=turn_id)

    async def _member_of(self, principal: Principal, session_id: SessionId) -> MemberId:
        """Whose session it is, which is asked of the database for one that is not awake. Raises NotFound."""
        known = self._turns.member_of(principal.tenant_id, session_id)
        if known is not None:
            return known
        return MemberId((await self._sessions.get(principal.tenant_id, session_id)).member_id)

    async def give_back(self, principal: Principal, place: Place, turn_id: TurnId) -> None:
        """Settled or never recorded, the reservation is free again (a second time changes nothing); so is the place of a
        session that did not wake up, and one that was made for the execution is closed.
        """
        await self._admission.settle_turn(principal.tenant_id, turn_id, 0)
        if place.is_new:
            await self._sessions.close(principal.tenant_id, place.session_id, "system")
        elif not self._turns.is_awake(place.session_id):
            await self._admission.release_session(principal.tenant_id, place.member_id, place.session_id)


class Launched:
    """An execution that runs, and its stream. Read its `events`, or `leave` it; it runs on in both cases."""

    def __init__(self, executions: Executions, turn: LiveTurn, answer: Answer) -> None:
        self.turn = turn
        self._executions = executions
        self._answer: Answer | None = answer

    async def events(self) -> AsyncIterator[TurnEvent]:
        """From the first to the last, once."""
        answer, self._answer = self._answer, None
        async for event in self._executions.tell(self.turn, answer, Frames(self.turn.id)):
            yield event

    def leave(self) -> None:
        """Nobody is going to read it. Nothing to do where somebody has begun to."""
        answer, self._answer = self._answer, None
        if answer is not None:
            self._executions.leave(self.turn, answer)


class _Given:
    """What was taken for an execution is given back when what is done with it fails, whoever goes away meanwhile."""

    def __init__(
        self, executions: Executions, principal: Principal, place: Place, turn_id: TurnId, admitted: Admitted
    ) -> None:
        self._back = executions.give_back
        self._taken = principal, place, turn_id
        self._standings = admitted.standings

    async def __aenter__(self) -> None:
        """Taken already."""

    async def __aexit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            if isinstance(error, DomainError):
                error.standings = error.standings or self._standings
            await asyncio.shield(self._back(*self._taken))


async def ended(turn: LiveTurn) -> None:
    """Its runtime does not tell of it any more, or not yet. Whoever only reads does not end it for that."""
    try:
        async with asyncio.timeout(_ENDED_SECONDS):
            await asyncio.shield(turn.ended)
    except TimeoutError as error:
        raise Unavailable("the execution's events can't be read just now; try again", retry_after_seconds=1) from error
