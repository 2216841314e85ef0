"""The ends of turns: by checkpoint, by the runtime's death, by a cancellation, or by the clock. `settlement` records them.

Owns who may end a turn and what is said of it then. Invariant: a turn whose runtime may know another end of it than what is
recorded leaves that runtime with its session, so that the next turn starts from the record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pods.calls import Calls, RuntimeRefused
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.router.pool import Answer
from amplifier_api_server.control_plane.sessions.live import LiveTurn, LiveTurns
from amplifier_api_server.control_plane.sessions.open_calls import left_of
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.settlement import Ending, Outcome, Settlement, ending_of_row
from amplifier_api_server.control_plane.sessions.tally import Spent
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.runtime import protocol
from amplifier_api_server.runtime.protocol import TurnStatus
from amplifier_api_server.tenants.errors import (
    Conflict,
    DomainError,
    Forbidden,
    NotFound,
    QuotaExceeded,
    RuntimeLost,
    TurnCancelled,
    TurnFailed,
)
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.quotas import next_day_at
from amplifier_api_server.tenants.repository import turns

log = structlog.get_logger(__name__)

_LAST_WORD_SECONDS = 5.0  # between the end of a runtime's stream and the settlement of its turn
_CANCEL_SECONDS = 0.8  # a cancelled turn ends within a second: what the runtime has not ended by then is ended here
_HANDING_OVER_SECONDS = 5.0  # for all that run at the server's stop, together
_OVERTIME_SECONDS = 30.0  # beyond the turn's own limit, which the runtime holds
_CANCELLED = "the turn was cancelled"
# What the model gateway says of what the tenant may not: no failure of the sandbox, and no other try would change it.
_NOT_ALLOWED = frozenset(("model_not_allowed", "provider_key_required", "server_tool_not_allowed"))


class Endings:
    """Ends turns, each once, whoever asks."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        live: LiveTurns,
        residency: Residency,
        settlement: Settlement,
        calls: Calls,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._database = database
        self._live = live
        self._residency = residency
        self._settlement = settlement
        self._calls = calls
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside the request that asked for it: whoever hangs up does not end it. `close` does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self, turn: LiveTurn, outcome: Outcome) -> Ending:
        """End it this way, unless it has ended already; how it ended."""
        return await self._settlement.settle(turn, outcome)

    async def checkpoint(self, runtime_id: RuntimeId, body: protocol.Checkpoint) -> protocol.CheckpointAnswer:
        """A runtime hands over a turn: make it durable, then say how it ended. Idempotent.

        Raises NotFound for a turn that does not run in this runtime, Conflict for a transcript that does not follow on.
        """
        turn = next((one for one in self._live.of_runtime(runtime_id) if one.id == body.request_id), None)
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

    def follow(self, turn: LiveTurn, answer: Answer) -> None:
        """Read a stream on that nobody reads any more, so that somebody learns how its turn ends."""
        if turn.is_followed or turn.ended.done():
            answer.close()
            return
        turn.is_followed = True
        self.beside(self.until_end(turn, lambda: _rest(answer)))

    async def until_end(self, turn: LiveTurn, read: Callable[[], Awaitable[None]]) -> None:
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
            log.warning("a runtime did not answer for a turn that has ended", request_id=turn.id)
            self.expel_soon(turn)
        except RouterError as error:
            await self.lost(turn, str(error))
        except DomainError:
            pass  # it is settled; who waits reads how
        except Exception:
            log.exception("a turn could not be watched", request_id=turn.id)
            await self.settle(turn, Outcome(TurnStatus.FAILED, error=TurnFailed("it could not be watched")))

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
        log.warning("turn lost", request_id=turn.id, runtime_id=turn.runtime_id, why=why)
        detail = "the sandbox ended in the middle of the turn; the session goes on from its last completed turn"
        ending = await self._settlement.settle(
            turn, Outcome(TurnStatus.FAILED, error=RuntimeLost(detail, code=code), abort=False)
        )
        self.expel_soon(turn)
        return ending

    async def cancel(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> TurnStatus:
        """End a turn, within a second; its status after that. Idempotent. Raises NotFound."""
        turn = self._live.get(tenant_id, session_id, turn_id)
        if turn is None:
            async with self._database.read() as db:
                row = await turns.find(db, tenant_id, session_id, turn_id)
            if row is None:
                raise NotFound(f"there is no execution {turn_id} in session {session_id}", code="execution_not_found")
            return TurnStatus(row.status)
        return (await self.end_now(turn, Outcome(TurnStatus.CANCELLED, error=TurnCancelled(_CANCELLED)))).status

    async def end_now(
        self, turn: LiveTurn, forced: Outcome, *, within_seconds: float = _CANCEL_SECONDS
    ) -> protocol.TurnResult:
        """Ask the runtime to cancel the turn; end it here as `forced` says when that takes too long.

        A turn that the runtime cancels in time is `cancelled`, with what it did so far, for the reason that `forced` gives.
        """
        turn.why_ended = turn.why_ended or forced.error
        if not turn.is_sent:  # no runtime knows of it, and none will: it is not begun once this has been asked for
            await self._settlement.settle(turn, forced)
            return turn.ended.result()
        try:
            async with asyncio.timeout(within_seconds):
                if turn.address is not None:
                    await self._calls.cancel(turn.address, turn.session_id, turn.id)
                await asyncio.shield(turn.ended)
        except (TimeoutError, RouterError, RuntimeRefused) as error:
            log.warning("a runtime did not cancel a turn in time", request_id=turn.id, error=str(error) or "time-out")
            await self._settlement.settle(turn, forced)
            self.expel_soon(turn)
        return turn.ended.result()

    def expel_soon(self, turn: LiveTurn) -> None:
        """Take the session out of a runtime that lost its thread: the next turn starts from what is recorded."""
        self.beside(self._expel(turn))

    async def _expel(self, turn: LiveTurn) -> None:
        try:
            await self._residency.suspend(turn.tenant_id, turn.session_id)
        except Exception:
            log.exception("a session could not be taken out of its runtime", session_id=turn.session_id)

    async def runtime_gone(self, runtime_id: RuntimeId, reason: str) -> None:
        """Every turn of a runtime that ended has failed; one that was not sent there yet finds another."""
        for turn in self._live.of_runtime(runtime_id):
            if not turn.is_sent:
                continue
            try:
                await self.lost(turn, reason)
            except Exception:
                log.exception("a lost turn could not be settled", request_id=turn.id)

    async def sweep(self) -> None:
        """Fail turns that run past their time: their runtime should have, and did not."""
        await self._settlement.settle_what_failed()
        limit = self._settings.sessions.turn_timeout.total_seconds() + _OVERTIME_SECONDS
        now = asyncio.get_running_loop().time()
        for turn in self._live.all():
            if now - turn.began_at > limit:
                error = TurnFailed(f"the turn took longer than {limit - _OVERTIME_SECONDS:.0f} s", code="turn_timeout")
                try:
                    await self.end_now(turn, Outcome(TurnStatus.FAILED, error=error))
                except Exception:
                    log.exception("an overdue turn could not be ended", request_id=turn.id)

    async def end_all(self, error: DomainError) -> None:
        """End every running turn, for this reason. What each has said so far is worth waiting for: nobody asks again."""
        outcome = Outcome(TurnStatus.FAILED, error=error)
        ends = [self.end_now(turn, outcome, within_seconds=_HANDING_OVER_SECONDS) for turn in self._live.all()]
        for result in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("a turn could not be ended", error=repr(result))

    async def close(self) -> None:
        """End what waits for turns; after the last one has ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._settlement.close()

    async def recover(self) -> int:
        """At the start of an embedded server: turns that were running when it died have failed; how many."""
        async with self._database.read() as db:
            left = await turns.running_of_all_tenants(db)
        for row in left:
            turn = LiveTurn(
                TurnId(row.id), TenantId(row.tenant_id), SessionId(row.session_id), MemberId(row.member_id), row.key_id
            )
            turn.wants_callback = True  # if it has one, it is due now
            error = RuntimeLost(
                "the server ended in the middle of the turn; the session goes on from its last completed turn"
            )
            try:
                self._settlement.resume(turn, Spent.of_row(row), await left_of(self._database, row))
                await self._settlement.settle(turn, Outcome(TurnStatus.FAILED, error=error))
            except Exception:
                log.exception("a turn of an earlier process could not be settled", request_id=row.id)
        return len(left)


def _outcome(body: protocol.Checkpoint, why_ended: DomainError | None, now: float) -> Outcome:
    error: DomainError | None = None
    if body.status is TurnStatus.CANCELLED:
        error = why_ended or TurnCancelled(_CANCELLED)
    elif body.status is TurnStatus.FAILED:
        failure = body.failure or protocol.Failure(code="turn_failed", detail="the turn failed")
        # What the budget refused inside the sandbox is the caller's limit, not the sandbox's failure.
        if failure.code == QuotaExceeded.code:
            error = QuotaExceeded(failure.detail, retry_after_seconds=next_day_at(now) - now)
        elif failure.code in _NOT_ALLOWED:
            error = Forbidden(failure.detail, code=failure.code)
        else:
            error = TurnFailed(failure.detail, code=failure.code, retry_after_seconds=failure.retry_after_seconds)
    return Outcome(
        status=body.status,
        response=body.response,
        finish_reason=body.finish_reason,
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


async def _rest(answer: Answer) -> None:
    try:
        while await answer.next(None) is not None:
            pass
    finally:
        answer.close()
