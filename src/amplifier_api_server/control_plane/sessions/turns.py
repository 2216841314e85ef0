"""Turns: beginning, watching, cancelling and losing them. `settlement` ends them.

A turn runs in its runtime, not in a request: what is here starts it there and waits for word of its end, which comes by a
checkpoint, by the runtime's death, by a cancellation, or by the clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.limits.backend import Budget
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.pods.calls import Calls, RuntimeRefused
from amplifier_api_server.control_plane.router.errors import DialError, RouterError
from amplifier_api_server.control_plane.router.pool import Answer, Pool
from amplifier_api_server.control_plane.sessions.live import LiveTurn, LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.settlement import Ending, Outcome, Settlement, ending_of_row
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.runtime import protocol
from amplifier_api_server.runtime.protocol import TurnStatus
from amplifier_api_server.tenants.errors import (
    Closed,
    Conflict,
    DomainError,
    NotFound,
    QuotaExceeded,
    RuntimeLost,
    TurnCancelled,
    TurnFailed,
    Unavailable,
)
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.quotas import next_day_at
from amplifier_api_server.tenants.repository import sessions, turns

log = structlog.get_logger(__name__)

_CANCEL_SECONDS = 0.8  # a cancelled turn ends within a second: what the runtime has not ended by then is ended here
_LAST_WORD_SECONDS = 5.0  # between the end of a runtime's stream and the settlement of its turn
_OVERTIME_SECONDS = 30.0  # beyond the turn's own limit, which the runtime holds
_CANCELLED = "the turn was cancelled"

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
        settlement: Settlement,
        running: RunningTurns,
        pool: Pool,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._settings = settings
        self._database = database
        self.live = live
        self._residency = residency
        self._settlement = settlement
        self._running = running
        self._pool = pool
        self._calls = Calls(pool)
        self._clock = clock
        self._telemetry = telemetry
        self._watchers: set[asyncio.Task[None]] = set()
        self._is_draining = False

    def is_awake(self, session_id: SessionId) -> bool:
        """Whether the session is open in a runtime now."""
        return self._residency.home(session_id) is not None

    def member_of(self, tenant_id: TenantId, session_id: SessionId) -> MemberId | None:
        """Whose session it is, where it is awake and the tenant's; None says nothing."""
        return self._residency.member_of(tenant_id, session_id)

    # Beginning.

    async def begin(
        self, principal: Principal, session_id: SessionId, turn_id: TurnId, budget: Budget | None, reserved: int
    ) -> LiveTurn:
        """Record a turn as running and bring its session to a runtime. Commits.

        The caller has taken the limits, under `turn_id`; from here on the settlement gives them back. Raises NotFound,
        Closed, Conflict (`turn_running`), Unavailable; the turn is settled as failed where it was recorded.
        """
        if self._is_draining:
            raise Unavailable("the server is stopping; try again in a moment", code="stopping", retry_after_seconds=5)
        turn = LiveTurn(turn_id, principal.tenant_id, session_id, principal.member_id, principal.key_id)
        turn.principal = principal
        home = self._residency.home(session_id)
        if home is not None:
            turn.runtime_id, turn.address = home
        await self._record(turn)
        self.live.add(turn)
        self._telemetry.running_turns.set(len(self.live))
        try:
            # Now that the turn can be seen nobody suspends its session any more; somebody may have, meanwhile.
            if home is None or self._residency.home(session_id) != home:
                turn.runtime_id, turn.address = await self._residency.ensure(principal, session_id)
                async with self._database.write() as db:
                    await turns.place(db, turn.tenant_id, turn.id, turn.runtime_id)
            if turn.runtime_id is None:
                raise Unavailable("the session has no sandbox", code="no_runtime")
            _require_wanted(turn)
            self._running.begin(
                MeteredTurn(
                    tenant_id=turn.tenant_id,
                    member_id=turn.member_id,
                    session_id=session_id,
                    turn_id=turn.id,
                    runtime_id=turn.runtime_id,
                    budget=budget,
                    reserved=reserved,
                )
            )
        except DomainError as error:
            await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=error))
            raise
        except BaseException:
            await asyncio.shield(
                self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=TurnFailed("it could not begin")))
            )
            raise
        return turn

    async def _record(self, turn: LiveTurn) -> None:
        now = self._clock.now()
        async with self._database.write() as db:
            if not await sessions.touch(db, turn.tenant_id, turn.session_id, now):
                if await sessions.find(db, turn.tenant_id, turn.session_id) is None:
                    raise NotFound(f"there is no session {turn.session_id}")
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
                "started_at": now,
            }
            await turns.begin(db, turn.tenant_id, values)

    async def open_stream(self, turn: LiveTurn, prompt: str) -> Answer:
        """Start the turn in its runtime; its events as they are made. Raises a DomainError; the turn is settled then."""
        return await self._start(turn, prompt, _EVENTS, head_timeout_seconds=30)

    async def run(self, turn: LiveTurn, prompt: str) -> protocol.TurnResult:
        """Start the turn in its runtime and wait for its end, as it is recorded. Hanging up does not end it."""
        self._beside(self._watch(turn, lambda: self._result(turn, prompt)))
        return await asyncio.shield(turn.ended)

    def follow(self, turn: LiveTurn, answer: Answer) -> None:
        """Read a stream on that nobody reads any more, so that somebody learns how its turn ends."""
        if turn.is_followed or turn.ended.done():
            answer.close()
            return
        turn.is_followed = True
        self._beside(self._watch(turn, lambda: _rest(answer)))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _result(self, turn: LiveTurn, prompt: str) -> None:
        answer = await self._start(turn, prompt, _RESULT, head_timeout_seconds=None)
        await answer.read(protocol.MAX_CHECKPOINT_BYTES, 30)

    async def _watch(self, turn: LiveTurn, read: Callable[[], Awaitable[None]]) -> None:
        """Until the runtime has said all that it says of the turn; then the turn has ended, or is ended here."""
        loop = asyncio.get_running_loop()
        try:
            # A runtime that never answers must not keep a connection when the turn has been ended by somebody else.
            async with asyncio.timeout(None) as limit:
                turn.ended.add_done_callback(when_ended := lambda _: limit.reschedule(loop.time() + _LAST_WORD_SECONDS))
                try:
                    await read()
                finally:
                    turn.ended.remove_done_callback(when_ended)
            await self.last_word(turn)
        except TimeoutError:
            log.warning("a runtime did not answer for a turn that has ended", turn_id=turn.id)
            self.expel_soon(turn)
        except RouterError as error:
            await self.lost(turn, str(error))
        except DomainError:
            pass  # it is settled; who waits reads how
        except Exception:
            log.exception("a turn could not be watched", turn_id=turn.id)
            await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=TurnFailed("it could not be watched")))

    async def _start(
        self, turn: LiveTurn, prompt: str, headers: list[tuple[bytes, bytes]], *, head_timeout_seconds: float | None
    ) -> Answer:
        """POST the turn. A dial failure is tried once more, on another runtime: nothing was sent."""
        body = protocol.StartTurn(prompt=prompt).model_dump_json().encode()
        path = protocol.Path.TURN.format(session_id=turn.session_id, request_id=turn.id)
        try:
            try:
                answer = await self._post(turn, path, headers, body, head_timeout_seconds)
            except DialError as error:
                await self._move(turn, str(error))
                answer = await self._post(turn, path, headers, body, head_timeout_seconds)
        except RouterError as error:
            ending = await self.lost(
                turn, str(error), code="no_runtime" if isinstance(error, DialError) else "runtime_lost"
            )
            raise _as_error(ending) from error
        except DomainError as error:
            await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=error))
            raise
        if answer.status == 200:  # noqa: PLR2004 - RFC 9110, 15.3.1
            return answer
        answer.close()
        log.error("a runtime refused a turn", turn_id=turn.id, status=answer.status, runtime_id=turn.runtime_id)
        refused = TurnFailed(f"the sandbox refused the turn ({answer.status})", code="runtime_refused")
        await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=refused))
        self.expel_soon(turn)
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
            return await self._pool.request(
                turn.address, "POST", path, headers=headers, body=body, head_timeout_seconds=head_timeout_seconds
            )
        except DialError:
            turn.is_sent = False
            raise

    async def _move(self, turn: LiveTurn, why: str) -> None:
        """Bring a turn that nothing was sent of, and its session, to another runtime. Raises DomainError."""
        assert turn.runtime_id is not None, "begin() has placed it"
        assert turn.principal is not None, "it is of this process"
        gone, turn.runtime_id, turn.address = turn.runtime_id, None, None
        log.info("a runtime was gone before the turn began", turn_id=turn.id, runtime_id=gone, why=why)
        await self._residency.abandon(gone, f"it can't be reached: {why}")
        turn.runtime_id, turn.address = await self._residency.ensure(turn.principal, turn.session_id)
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
        return answer

    # Ending.

    async def checkpoint(self, runtime_id: RuntimeId, body: protocol.Checkpoint) -> protocol.CheckpointAnswer:
        """A runtime hands over a turn: make it durable, then say how it ended. Idempotent.

        Raises NotFound for a turn that does not run in this runtime, Conflict for a transcript that does not follow on.
        """
        turn = next((one for one in self.live.of_runtime(runtime_id) if one.id == body.request_id), None)
        if turn is None or turn.session_id != body.session_id:
            return _answered(await self._ended_in(runtime_id, SessionId(body.session_id), TurnId(body.request_id)))
        try:
            ending = await self._settlement.settle(turn, _outcome(body, turn.why_ended, self._clock.now().timestamp()))
        except Conflict as error:
            ending = await self._settlement.settle(
                turn, Outcome(TurnStatus.FAILED, error=TurnFailed(error.detail, code=error.stable_code))
            )
            self.expel_soon(turn)
        return _answered(ending)

    async def _ended_in(self, runtime_id: RuntimeId, session_id: SessionId, turn_id: TurnId) -> Ending:
        """How a turn of this runtime ended that has been handed over before: its answer was lost, and is asked for again."""
        tenant_id = self._residency.tenant_of(runtime_id)
        if tenant_id is not None:
            async with self._database.read() as db:
                row = await turns.find(db, tenant_id, session_id, turn_id)
            if row is not None and row.runtime_id == runtime_id and row.status != TurnStatus.RUNNING:
                return ending_of_row(row)
        raise NotFound(f"no turn {turn_id} runs in this sandbox", code="no_turn")

    async def last_word(self, turn: LiveTurn) -> None:
        """The runtime says the turn is over: if no checkpoint said so, it failed."""
        if turn.ended.done():
            return
        try:
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await asyncio.shield(turn.ended)
        except TimeoutError:
            error = TurnFailed("the sandbox ended the turn without handing it over", code="not_durable")
            await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=error))
            self.expel_soon(turn)

    async def lost(self, turn: LiveTurn, why: str, *, code: str = "runtime_lost") -> Ending:
        """The turn's runtime went away, or can't be reached; how the turn ended."""
        log.warning("turn lost", turn_id=turn.id, runtime_id=turn.runtime_id, why=why)
        detail = "the sandbox ended in the middle of the turn; the session goes on from its last completed turn"
        ending = await self._settlement.settle(
            turn, Outcome(TurnStatus.FAILED, error=RuntimeLost(detail, code=code), abort=False)
        )
        self.expel_soon(turn)
        return ending

    async def cancel(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> TurnStatus:
        """End a turn, within a second; its status after that. Idempotent. Raises NotFound."""
        turn = self.live.get(tenant_id, session_id, turn_id)
        if turn is None:
            async with self._database.read() as db:
                row = await turns.find(db, tenant_id, session_id, turn_id)
            if row is None:
                raise NotFound(f"there is no execution {turn_id} in session {session_id}")
            return TurnStatus(row.status)
        return (await self.end_now(turn, Outcome(TurnStatus.CANCELLED, error=TurnCancelled(_CANCELLED)))).status

    async def end_now(self, turn: LiveTurn, forced: Outcome) -> protocol.TurnResult:
        """Ask the runtime to cancel the turn; end it here as `forced` says when that takes too long.

        A turn that the runtime cancels in time is `cancelled`, with what it did so far, for the reason that `forced` gives.
        """
        turn.why_ended = turn.why_ended or forced.error
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                if turn.address is not None:
                    await self._calls.cancel(turn.address, turn.session_id, turn.id)
                await asyncio.shield(turn.ended)
        except (TimeoutError, RouterError, RuntimeRefused) as error:
            log.warning("a runtime did not cancel a turn in time", turn_id=turn.id, error=str(error) or "time-out")
            await self._settlement.settle(turn, forced)
            self.expel_soon(turn)
        return turn.ended.result()

    def expel_soon(self, turn: LiveTurn) -> None:
        """Take the session out of a runtime that lost its thread: the next turn starts from what is recorded."""
        self._beside(self._expel(turn))

    async def _expel(self, turn: LiveTurn) -> None:
        try:
            await self._residency.suspend(turn.tenant_id, turn.session_id)
        except Exception:
            log.exception("a session could not be taken out of its runtime", session_id=turn.session_id)

    async def runtime_gone(self, runtime_id: RuntimeId, reason: str) -> None:
        """Every turn of a runtime that ended has failed; one that was not sent there yet finds another."""
        for turn in self.live.of_runtime(runtime_id):
            if not turn.is_sent:
                continue
            try:
                await self.lost(turn, reason)
            except Exception:
                log.exception("a lost turn could not be settled", turn_id=turn.id)

    async def sweep(self) -> None:
        """Fail turns that run past their time: their runtime should have, and did not."""
        await self._settlement.settle_what_failed()
        limit = self._settings.sessions.turn_timeout.total_seconds() + _OVERTIME_SECONDS
        now = asyncio.get_running_loop().time()
        for turn in self.live.all():
            if now - turn.began_at > limit:
                error = TurnFailed(f"the turn took longer than {limit - _OVERTIME_SECONDS:.0f} s", code="turn_timeout")
                try:
                    await self.end_now(turn, Outcome(TurnStatus.FAILED, error=error))
                except Exception:
                    log.exception("an overdue turn could not be ended", turn_id=turn.id)

    async def drain(self, timeout_seconds: float) -> None:
        """Take no new turn; let running ones go on for so long, then end them."""
        self._is_draining = True
        running = [turn.ended for turn in self.live.all()]
        if running:
            await asyncio.wait(running, timeout=timeout_seconds)
        error = Unavailable("the server is stopping; the session can go on when it is back", code="stopping")
        await asyncio.gather(
            *(self.end_now(turn, Outcome(TurnStatus.FAILED, error=error)) for turn in self.live.all()),
            return_exceptions=True,
        )

    async def close(self) -> None:
        """End what waits for turns; after the last one has ended."""
        for task in list(self._watchers):
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._settlement.close()

    async def recover(self) -> int:
        """At the start of an embedded server: turns that were running when it died have failed; how many."""
        async with self._database.read() as db:
            left = await turns.running_of_all_tenants(db)
        for row in left:
            turn = LiveTurn(
                TurnId(row.id), TenantId(row.tenant_id), SessionId(row.session_id), MemberId(row.member_id), row.key_id
            )
            error = RuntimeLost(
                "the server ended in the middle of the turn; the session goes on from its last completed turn"
            )
            self._settlement.resume(turn, prompt_tokens=row.prompt_tokens, completion_tokens=row.completion_tokens)
            try:
                await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=error))
            except Exception:
                log.exception("a turn of an earlier process could not be settled", turn_id=row.id)
        return len(left)


async def _rest(answer: Answer) -> None:
    try:
        while await answer.next(None) is not None:
            pass
    finally:
        answer.close()


def _require_wanted(turn: LiveTurn) -> None:
    """Raise TurnCancelled for a turn that was ended while its session woke up: it must not begin any more."""
    if turn.settling.locked() or turn.ended.done():
        raise TurnCancelled("the turn was ended before it began")


def _outcome(body: protocol.Checkpoint, why_ended: DomainError | None, now: float) -> Outcome:
    error: DomainError | None = None
    if body.status is TurnStatus.CANCELLED:
        error = why_ended or TurnCancelled(_CANCELLED)
    elif body.status is TurnStatus.FAILED:
        failure = body.failure or protocol.Failure(code="turn_failed", detail="the turn failed")
        # What the budget refused inside the sandbox is the caller's limit, not the sandbox's failure.
        if failure.code == QuotaExceeded.code:
            error = QuotaExceeded(failure.detail, retry_after_seconds=next_day_at(now) - now)
        else:
            error = TurnFailed(failure.detail, code=failure.code, retry_after_seconds=failure.retry_after_seconds)
    return Outcome(
        status=body.status,
        response=body.response,
        tool_calls=body.tool_calls,
        error=error,
        base=body.base if body.status is not TurnStatus.FAILED else None,
        messages=body.messages if body.status is not TurnStatus.FAILED else (),
        state=body.state if body.status is not TurnStatus.FAILED else None,
        events=body.events,
        last_event=body.last_event,
    )


def _answered(ending: Ending) -> protocol.CheckpointAnswer:
    return protocol.CheckpointAnswer(event=ending.event, data=ending.data, result=ending.result)


def _as_error(ending: Ending) -> DomainError:
    found = ending.result.problem or {}
    return RuntimeLost(str(found.get("detail", "the sandbox went away")), code=str(found.get("code", "runtime_lost")))
