"""Settlement: the one way a turn ends, whoever ends it.

Owns the transaction in which a turn's transcript, events, usage and status are written, together and once. Refuses to know
why: a checkpoint, a lost sandbox, a cancellation and a time-out all come here. Invariant: a turn's tokens in its row are
the sum of its rows in the ledger, at every moment; a turn's reservation is given back with its settlement.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

import structlog

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.errors import encode, problem, problem_of
from amplifier_api_server.control_plane.sessions.live import LiveTurn, LiveTurns
from amplifier_api_server.control_plane.sessions.tally import Spent, Tally, ledger_rows
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Conflict, DomainError, InsufficientStorage, Unavailable
from amplifier_api_server.tenants.ids import MemberId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.lifecycle import SessionStatus
from amplifier_api_server.tenants.models import Session, Turn
from amplifier_api_server.tenants.repository import callbacks, sessions, turns, usage

log = structlog.get_logger(__name__)

MAX_TRANSCRIPT_BYTES = 32 * 1024 * 1024  # of a session: all of it is read, and given to a runtime, at every waking
_EVENTS = {
    protocol.TurnStatus.COMPLETED: EventType.EXECUTION_COMPLETED,
    protocol.TurnStatus.FAILED: EventType.EXECUTION_FAILED,
    protocol.TurnStatus.CANCELLED: EventType.EXECUTION_CANCELLED,
}
_COMPRESSION = 1  # of events: a stream of small frames shrinks to a tenth at the fastest level already


class Metering(Protocol):
    """The model gateway's side of a turn."""

    async def finish(self, turn_id: Any, *, abort: bool) -> Sequence[Any]: ...


class Reservations(Protocol):
    """The limits' side of a turn."""

    async def settle_turn(self, tenant_id: TenantId, turn_id: TurnId, spent: int) -> None: ...

    async def close_session(self, tenant_id: TenantId, member_id: MemberId, session_id: SessionId) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended."""

    status: protocol.TurnStatus
    response: str = ""
    finish_reason: str | None = None
    tool_calls: Sequence[protocol.ToolCall] = ()
    error: DomainError | None = None  # why it failed or was cancelled
    base: int | None = None  # the transcript's length before the turn; None adds no messages
    messages: Sequence[dict[str, Any]] = ()
    state: dict[str, Any] | None = None
    events: str = ""  # the stream so far, without a terminal frame
    last_event: int = 0
    abort: bool = True  # end model calls in flight at once; False lets them tell their usage first


@dataclass(frozen=True, slots=True)
class Ending:
    """The terminal event of a settled turn."""

    result: protocol.TurnResult
    event: protocol.EventName
    data: dict[str, Any]
    number: int

    @property
    def frame(self) -> bytes:
        return protocol.sse(self.result.request_id, self.number, self.event, encode(self.data).decode())


class Settlement:
    """Ends turns."""

    def __init__(
        self,
        *,
        database: Database,
        live: LiveTurns,
        metering: Metering,
        reservations: Reservations,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._live = live
        self._metering = metering
        self._reservations = reservations
        self._clock = clock
        self._telemetry = telemetry
        self._tallies: dict[str, Tally] = {}  # of turns that run
        self._under_way: set[asyncio.Task[Ending]] = set()
        self._unsettled: dict[LiveTurn, Outcome] = {}

    def __len__(self) -> int:
        """Turns that could not be ended yet."""
        return len(self._unsettled)

    def _tally(self, turn: LiveTurn) -> Tally:
        return self._tallies.setdefault(turn.id, Tally())

    def resume(self, turn: LiveTurn, spent: Spent, calls: Sequence[Any]) -> None:
        """Take up a turn of an earlier process, with what its row says it had used, and `calls` that are not in that."""
        self._tallies[turn.id] = Tally(spent, is_counted=spent.total_tokens > 0, pending=list(calls))

    async def record_step(self, turn: LiveTurn, calls: Sequence[Any]) -> None:
        """Write finished calls of a turn that goes on, so that a crash of this server loses at most the last step's.

        Raises Conflict when the turn is being settled: the settlement writes them, and it may be waiting for this.
        """
        if turn.settling.locked() or turn.ended.done():
            raise Conflict("the turn is being settled")
        async with turn.settling:
            tally = self._tally(turn)
            now = self._clock.now()
            async with self._database.write() as db:
                rows = ledger_rows(turn, calls, now, count_turn=not tally.is_counted)
                await usage.append(db, turn.tenant_id, rows)
                spent = tally.written.plus(calls)
                await turns.set_spent(db, turn.tenant_id, turn.id, **_columns(spent))
            tally.is_counted = True
            tally.written = spent

    async def settle(self, turn: LiveTurn, outcome: Outcome) -> Ending:
        """End the turn this way, unless it has ended already; how it ended.

        Raises Conflict (`stale_checkpoint`, `transcript_full`) when its transcript can't be added to what is recorded, and
        what the database raises; the turn runs on then, and may be settled again. Once begun it is done, whoever asked for
        it and went away: half a settlement would leave the turn running for ever.
        """
        task = asyncio.create_task(self._settle(turn, outcome))
        self._under_way.add(task)
        task.add_done_callback(partial(self._done, turn, outcome))
        return await asyncio.shield(task)

    def _done(self, turn: LiveTurn, outcome: Outcome, task: asyncio.Task[Ending]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or isinstance(error, Conflict):
            return
        log.error("a turn could not be settled", request_id=turn.id, exc_info=error)
        if outcome.status is not protocol.TurnStatus.COMPLETED:  # a runtime asks for that again by itself
            self._unsettled[turn] = outcome
            if not turn.unrecorded.done():
                turn.unrecorded.set_result(_unrecorded(error))

    async def settle_what_failed(self) -> None:
        """Try again to end the turns that could not be ended: the disk may have been full, and nobody else asks again."""
        for turn, outcome in list(self._unsettled.items()):
            del self._unsettled[turn]
            if not turn.ended.done():
                with contextlib.suppress(Exception):  # it is logged, and noted anew
                    await self.settle(turn, outcome)

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _settle(self, turn: LiveTurn, outcome: Outcome) -> Ending:
        async with turn.settling:
            if turn.ended.done():
                return await self.recorded(turn)
            tally = self._tally(turn)
            tally.pending.extend(await self._metering.finish(turn.id, abort=outcome.abort))
            ending = self._ending(turn, outcome, tally)
            if not await self._write(turn, outcome, ending, tally):
                ending = await self._ended_before(turn)
            spent = ending.result.usage.total_tokens
            self._tallies.pop(turn.id, None)
            self._live.remove(turn)
            turn.ended.set_result(ending.result)
        await self._reservations.settle_turn(turn.tenant_id, turn.id, spent)
        if turn.closes_session:  # before anybody reads of the end, so that whoever does has the place for the next one
            await self._reservations.close_session(turn.tenant_id, turn.member_id, turn.session_id)
        used = ending.result.usage
        self._telemetry.running_turns.set(len(self._live))
        self._telemetry.session_executed(
            session_id=turn.session_id,
            request_id=turn.id,
            status=ending.result.status,
            prompt=used.prompt_tokens,
            completion=used.completion_tokens,
            seconds=asyncio.get_running_loop().time() - turn.began_at,
            code=(ending.result.problem or {}).get("code"),
        )
        return ending

    def _ending(self, turn: LiveTurn, outcome: Outcome, tally: Tally) -> Ending:
        found = problem_of(outcome.error) if outcome.error is not None else None
        result = protocol.TurnResult(
            request_id=turn.id,
            status=outcome.status,
            response=outcome.response,
            finish_reason=outcome.finish_reason,
            usage=tally.spent().usage,
            tool_calls=list(outcome.tool_calls),
            problem=found,
        )
        return _ending_of(result, turn.session_id, max(outcome.last_event, turn.last_event) + 1)

    async def _write(self, turn: LiveTurn, outcome: Outcome, ending: Ending, tally: Tally) -> bool:
        """Everything, in one transaction; False, and nothing, where the turn's row says that it has ended."""
        now = self._clock.now()
        frames, state = await asyncio.to_thread(_packed, outcome, ending)
        async with self._database.write() as db:
            is_first = await turns.finish(
                db,
                turn.tenant_id,
                turn.id,
                status=outcome.status.value,
                response=outcome.response,
                finish_reason=outcome.finish_reason,
                tool_calls=[call.model_dump(exclude_none=True) for call in outcome.tool_calls],
                problem=ending.result.problem,
                last_event=ending.number,
                finished_at=now,
                open_calls=[],
                **_columns(tally.spent()),
            )
            if not is_first:
                return False
            if turn.wants_callback:
                await callbacks.make_due(db, turn.tenant_id, turn.id, now)
            rows = ledger_rows(turn, tally.pending, now, count_turn=not tally.is_counted)
            await usage.append(db, turn.tenant_id, rows)
            await turns.save_events(db, turn.tenant_id, turn.id, frames, state)
            await emit(db, self._clock, turn.tenant_id, _EVENTS[outcome.status], _told(turn, ending))
            session = await sessions.find(db, turn.tenant_id, turn.session_id)
            if session is not None:
                session.last_active_at = now
                if outcome.base is not None:
                    await self._add_to_transcript(db, turn, session, outcome, now)
                if session.closes_with_turn and session.status != SessionStatus.CLOSED:
                    session.status, session.closed_at, session.runtime_id = SessionStatus.CLOSED.value, now, None
                    told = {"session_id": session.id, "member_id": session.member_id}
                    await emit(db, self._clock, turn.tenant_id, EventType.SESSION_CLOSED, told)
        return True

    async def _add_to_transcript(
        self, db: Any, turn: LiveTurn, session: Session, outcome: Outcome, now: datetime
    ) -> None:
        if session.message_count != outcome.base:
            raise Conflict(
                f"the turn began at message {outcome.base}, the transcript has {session.message_count}",
                code="stale_checkpoint",
            )
        size = sum(len(encode(message)) for message in outcome.messages)
        if session.transcript_bytes + size > MAX_TRANSCRIPT_BYTES:
            raise Conflict(
                f"the session's transcript would be longer than {MAX_TRANSCRIPT_BYTES} bytes; create another session",
                code="transcript_full",
            )
        session.transcript_bytes += size
        await sessions.add_messages(
            db,
            turn.tenant_id,
            turn.session_id,
            turn.id,
            session.message_count,
            outcome.messages,
            now,
            asked_at=turn.started_at,
        )
        session.message_count += len(outcome.messages)
        session.turn_count += 1
        if outcome.state is not None:
            session.state = outcome.state

    async def _ended_before(self, turn: LiveTurn) -> Ending:
        """A commit that was reported as failed, and was done."""
        async with self._database.read() as db:
            row = await turns.find(db, turn.tenant_id, turn.session_id, turn.id)
        assert row is not None, "a turn's row is written before the turn runs"
        log.warning("a turn had been settled before", request_id=turn.id)
        return ending_of_row(row)

    async def recorded(self, turn: LiveTurn) -> Ending:
        """The ending of a turn that has ended."""
        result = turn.ended.result()
        async with self._database.read() as db:
            row = await turns.find(db, turn.tenant_id, turn.session_id, turn.id)
        return _ending_of(result, turn.session_id, row.last_event if row is not None else turn.last_event + 1)


def _unrecorded(error: BaseException) -> DomainError:
    told = "the execution has ended, and its end could not be recorded; it is recorded as failed as soon as that can be done"
    if isinstance(error, InsufficientStorage):
        return InsufficientStorage(f"{error.detail}: {told}", retry_after_seconds=error.retry_after_seconds)
    return Unavailable(told, retry_after_seconds=5)


def _packed(outcome: Outcome, ending: Ending) -> tuple[bytes, bytes | None]:
    """The turn's stream, and the session's state as of its end, as they are kept."""
    frames = zlib.compress(outcome.events.encode() + ending.frame, _COMPRESSION)
    return frames, None if outcome.state is None else zlib.compress(encode(outcome.state), _COMPRESSION)


def _told(turn: LiveTurn, ending: Ending) -> dict[str, Any]:
    """What the tenant's followers learn of it."""
    told: dict[str, Any] = {"session_id": turn.session_id, "request_id": turn.id, "member_id": turn.member_id}
    told["total_tokens"] = ending.result.usage.total_tokens
    if ending.result.problem is not None:
        told["code"] = ending.result.problem["code"]
    return told


def ending_of_row(row: Turn) -> Ending:
    """The terminal event of a turn that is recorded as ended."""
    result = protocol.TurnResult(
        request_id=row.id,
        status=protocol.TurnStatus(row.status),
        response=row.response,
        finish_reason=row.finish_reason,
        usage=Spent.of_row(row).usage,
        tool_calls=[protocol.ToolCall.model_validate(one) for one in row.tool_calls],
        problem=row.problem,
    )
    return _ending_of(result, SessionId(row.session_id), row.last_event)


def _ending_of(result: protocol.TurnResult, session_id: SessionId, number: int) -> Ending:
    """The terminal event that tells `result`."""
    if result.status is protocol.TurnStatus.COMPLETED:
        data: dict[str, Any] = {
            "request_id": result.request_id,
            "session_id": session_id,
            "usage": result.usage.model_dump(),
            "response": result.response,
            "finish_reason": result.finish_reason,
            "tool_calls": [call.model_dump(exclude_none=True) for call in result.tool_calls],
        }
        return Ending(result, protocol.EventName.COMPLETE, data, number)
    found = result.problem or problem(500, "turn_failed", "the turn failed")
    data = {**found, "request_id": result.request_id, "session_id": session_id, "usage": result.usage.model_dump()}
    return Ending(result, protocol.EventName.ERROR, data, number)


def _columns(spent: Spent) -> dict[str, int | None]:
    """Of the turn's row."""
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.total_tokens,
        "cached_tokens": spent.cached_tokens,
        "reasoning_tokens": spent.reasoning_tokens,
        "cost_microdollars": spent.cost_microdollars,
    }
