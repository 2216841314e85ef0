"""Approvals: a person's consent that a running execution waits for, for every door. Takes a principal and plain values.

Owns who may see and answer what, the audit log's entry and the tenant's events. Refuses to keep anything: what waits is in
the execution's sandbox, which alone knows it, and is believed about nobody but its own tenant. What another tenant owns does
not exist here.
"""

from __future__ import annotations

import asyncio
import re
from datetime import datetime
from typing import Any, Final

import structlog

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.pages import Place
from amplifier_api_server.control_plane.pods.calls import Calls, RuntimeRefused
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.control_plane.sessions.live import LiveTurn, LiveTurns
from amplifier_api_server.control_plane.sessions.schemas import ApprovalView
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime.protocol import (
    MAX_TURN_APPROVALS,
    MAX_WAITING_APPROVALS,
    ApprovalAnswer,
    ApprovalEvent,
)
from amplifier_api_server.tenants.errors import Conflict, DomainError, Invalid, NotFound, Refused, Unavailable
from amplifier_api_server.tenants.ids import ApprovalId, RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.repository import turns
from amplifier_api_server.tenants.repository.pages import Page

log = structlog.get_logger(__name__)

_ID = re.compile(r"apr_[0-9A-Za-z]{1,40}")
_TIMES_TOLD = 2 * MAX_TURN_APPROVALS  # each is told of when it is requested, and when it has timed out
_ASK_SECONDS = 6.0
_CLOSED = frozenset({"approval_closed", "no_turn", "no_session"})


BY_EXPIRY: Final = Place(lambda one: (one.expires_at, one.approval_id), (datetime, str))


class Approvals:
    """The approvals of all tenants, each seen by its own."""

    def __init__(self, *, live: LiveTurns, database: Database, calls: Calls, clock: Clock) -> None:
        self._live = live
        self._database = database
        self._calls = calls
        self._clock = clock

    async def pending(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> list[ApprovalView]:
        """Those that wait for an answer now; none where the execution has ended, or has not begun yet.

        Raises NotFound, Unavailable.
        """
        turn = await self._turn(tenant_id, session_id, turn_id)
        if turn is None or not turn.is_sent or turn.address is None:
            return []
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                found = await self._calls.approvals(turn.address, session_id, turn_id)
        except RuntimeRefused:
            return []  # it has ended there, or is about to begin
        except (RouterError, TimeoutError) as error:
            raise _unreachable(turn, error) from error
        return [_view(turn, one) for one in found.approvals]

    async def answer(
        self,
        principal: Principal,
        session_id: SessionId,
        turn_id: TurnId,
        approval_id: ApprovalId,
        choice: str | bool,
    ) -> ApprovalView:
        """Choose one of its options, or (True, False) what one comes to. Of two who answer at once one is taken.

        Raises NotFound, Conflict (`approval_closed`: answered before, timed out, or its execution has ended), Invalid
        (`invalid_choice`, which lists the options), Unavailable.
        """
        turn = await self._turn(principal.tenant_id, session_id, turn_id)
        if not _ID.fullmatch(approval_id):
            raise NotFound(f"there is no approval {approval_id[:60]} in execution {turn_id}", code="approval_not_found")
        if turn is None:
            raise Conflict(f"execution {turn_id} has ended, and asks for nothing any more", code="approval_closed")
        if not turn.is_sent or turn.address is None:
            raise NotFound(f"there is no approval {approval_id} in execution {turn_id}", code="approval_not_found")
        # Once it was taken it is recorded, whoever hangs up meanwhile.
        return await asyncio.shield(self._answer(principal, turn, approval_id, choice))

    async def _answer(
        self, principal: Principal, turn: LiveTurn, approval_id: ApprovalId, choice: str | bool
    ) -> ApprovalView:
        assert turn.address is not None, "the caller has looked"
        body = ApprovalAnswer(approved=choice) if isinstance(choice, bool) else ApprovalAnswer(choice=choice)
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                event = await self._calls.answer_approval(turn.address, turn.session_id, turn.id, approval_id, body)
        except RuntimeRefused as error:
            raise _as_domain_error(error) from error
        except (RouterError, TimeoutError) as error:
            raise _unreachable(turn, error) from error
        if event.approval_id != approval_id or event.status != "answered":
            log.warning("a sandbox answered for another approval", request_id=turn.id, runtime_id=turn.runtime_id)
            raise Unavailable("the sandbox gave no answer that can be read; try again", retry_after_seconds=1)
        async with self._database.write() as db:
            changes = {"choice": (None, event.choice), "approved": (None, event.approved)}
            await record(db, self._clock, principal, "answerApproval", target=approval_id, changes=changes)
            told = _told(turn, event) | {"member_id": principal.member_id}
            await emit(db, self._clock, turn.tenant_id, EventType.APPROVAL_ANSWERED, told)
        turn.waiting.pop(approval_id, None)
        return _view(turn, event)

    def waiting(self, tenant_id: TenantId, session_id: str | None, page: Page) -> list[ApprovalView]:
        """Those that any of the tenant's executions waits for, as far as their sandboxes have told of them."""
        turns_of = self._live.of_tenant(tenant_id)
        found = [_view(turn, one) for turn in turns_of for one in turn.waits(self._clock.now())]
        return BY_EXPIRY.part_of((one for one in found if session_id in (None, one.session_id)), page)

    async def told(self, runtime_id: RuntimeId, turn_id: TurnId, event: ApprovalEvent) -> None:
        """A sandbox says that one was requested, or has timed out: tell who follows the tenant.

        Raises NotFound for a turn that does not run there, Refused for one that tells too often, Invalid.
        """
        turn = next((one for one in self._live.of_runtime(runtime_id) if one.id == turn_id), None)
        if turn is None or turn.ended.done():
            raise NotFound(f"no turn {turn_id[:60]} runs in this sandbox", code="no_turn")
        if event.status not in ("requested", "timed_out"):
            raise Invalid("an approval is told of when it is requested, and when it has timed out")
        turn.approvals_told += 1
        if turn.approvals_told > _TIMES_TOLD:
            raise Refused("the turn has told of too many approvals", code="too_many_approvals")
        kind = EventType.APPROVAL_REQUESTED if event.status == "requested" else EventType.APPROVAL_ANSWERED
        async with self._database.write() as db:
            await emit(db, self._clock, turn.tenant_id, kind, _told(turn, event))
        if event.status != "requested":
            turn.waiting.pop(event.approval_id, None)
        elif len(turn.waiting) < MAX_WAITING_APPROVALS:
            turn.waiting[event.approval_id] = _view(turn, event).expires_at, event

    async def _turn(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> LiveTurn | None:
        """The execution while it runs, None once it has ended. Raises NotFound where there is none."""
        turn = self._live.get(tenant_id, session_id, turn_id)
        if turn is None:
            async with self._database.read() as db:
                if await turns.find(db, tenant_id, session_id, turn_id) is None:
                    raise NotFound(
                        f"there is no execution {turn_id} in session {session_id}", code="execution_not_found"
                    )
        return turn


def _told(turn: LiveTurn, event: ApprovalEvent) -> dict[str, Any]:
    """What followers of the tenant are told: no prompt, which may hold what the session is about."""
    told: dict[str, Any] = {
        "session_id": turn.session_id,
        "request_id": turn.id,
        "approval_id": event.approval_id,
        "status": event.status,
        "expires_at": event.expires_at,
        "tool": event.tool,
        "agent": event.agent,
    }
    if event.status != "requested":
        told |= {"approved": event.status == "answered" and event.approved is True, "choice": event.choice}
    return told


def _view(turn: LiveTurn, event: ApprovalEvent) -> ApprovalView:
    try:
        return ApprovalView.of(turn.session_id, turn.id, event)
    except ValueError as error:
        log.warning("a sandbox told of an approval that can't be read", request_id=turn.id, runtime_id=turn.runtime_id)
        raise Unavailable("the sandbox gave no answer that can be read; try again", retry_after_seconds=1) from error


def _as_domain_error(error: RuntimeRefused) -> DomainError:
    failure = error.failure
    if failure.code in _CLOSED:
        return Conflict(failure.detail, code="approval_closed")
    if failure.code == "no_approval":
        return NotFound(failure.detail, code="approval_not_found")
    if failure.code == "invalid_choice":
        return Invalid(failure.detail, code="invalid_choice")
    return Unavailable(failure.detail, code=failure.code, retry_after_seconds=failure.retry_after_seconds or 1)


def _unreachable(turn: LiveTurn, error: Exception) -> Unavailable:
    log.warning("a sandbox could not be asked of its approvals", request_id=turn.id, why=str(error) or "time-out")
    return Unavailable("the sandbox does not answer just now; try again", retry_after_seconds=1)
