"""The approvals of one turn: what waits for a person's word, and how each of them ended.

Owns an approval from the asking to the end. Refuses to know who answers, and by which door. Invariants: an approval that was
shown ends once (answered, timed out or cancelled), which is shown too; nothing is granted after its turn, or its child
session's, was cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from amplifier_api_server.runtime.failures import BadRequest, Conflicting, Missing
from amplifier_api_server.runtime.protocol import (
    MAX_TURN_APPROVALS,
    MAX_WAITING_APPROVALS,
    ApprovalAnswer,
    ApprovalEvent,
)

if TYPE_CHECKING:
    from amplifier_api_server.runtime.turn_port import Turn

ALWAYS, DENY = "Allow always", "Deny"
GRANTS = ("Allow once", "Allow", ALWAYS)  # core takes no other words for a yes; what `approved: true` means comes first


@dataclass(slots=True)
class _Waiting:
    event: ApprovalEvent
    asker: Turn
    chosen: asyncio.Future[str]


class TurnApprovals:
    """Of one turn that a client asked for, those of its child sessions among them. `show` adds an event to its stream."""

    def __init__(self, show: Callable[[ApprovalEvent], None]) -> None:
        self._show = show
        self._waiting: dict[str, _Waiting] = {}
        self._ended: dict[str, str] = {}  # ids -> statuses

    @property
    def waiting(self) -> list[ApprovalEvent]:
        return [one.event for one in self._waiting.values()]

    @property
    def takes_more(self) -> bool:
        return len(self._waiting) < MAX_WAITING_APPROVALS and len(self._waiting) + len(self._ended) < MAX_TURN_APPROVALS

    async def ask(self, asker: Turn, event: ApprovalEvent, tell: Callable[[ApprovalEvent], None]) -> str | None:
        """The option that was chosen; None when nobody chose in time; a denial when `asker` ends first.

        `tell` hears that it was requested, and that it timed out.
        """
        waiting = _Waiting(event, asker, asyncio.get_running_loop().create_future())
        self._waiting[event.approval_id] = waiting
        self._show(event)
        tell(event)
        watched: set[asyncio.Future[Any]] = {waiting.chosen, asker.cancelled}
        try:
            await asyncio.wait(watched, timeout=event.timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.chosen.done() and not asker.cancelled.done():
                tell(self._end(waiting, "timed_out", approved=False))
                return None
        finally:
            if event.approval_id in self._waiting:
                self._end(waiting, "cancelled", approved=False)
        return waiting.chosen.result()

    def answer(self, approval_id: str, answer: ApprovalAnswer) -> ApprovalEvent:
        """Choose for a waiting one. Raises Missing (no_approval), Conflicting (approval_closed), BadRequest
        (invalid_choice).
        """
        if (status := self._ended.get(approval_id)) is not None:
            raise Conflicting("approval_closed", f"approval {approval_id} has ended already: {_WORDS[status]}")
        waiting = self._waiting.get(approval_id)
        if waiting is None:
            raise Missing("no_approval", f"there is no approval {approval_id!r:.60} in this execution")
        if waiting.asker.cancelled.done():
            self._end(waiting, "cancelled", approved=False)
            raise Conflicting("approval_closed", f"approval {approval_id} has ended already: {_WORDS['cancelled']}")
        choice = _choice_of(answer, waiting.event.options)
        return self._end(waiting, "answered", approved=choice in GRANTS, choice=choice)

    def close(self) -> None:
        """The turn takes nothing more: what still waits is denied."""
        for waiting in list(self._waiting.values()):
            self._end(waiting, "cancelled", approved=False)

    def _end(self, waiting: _Waiting, status: str, *, approved: bool, choice: str | None = None) -> ApprovalEvent:
        approval_id = waiting.event.approval_id
        self._waiting.pop(approval_id, None)
        self._ended[approval_id] = status
        event = waiting.event.model_copy(update={"status": status, "approved": approved, "choice": choice})
        if not waiting.chosen.done():
            waiting.chosen.set_result(choice or DENY)
        self._show(event)
        return event


_WORDS = {
    "answered": "somebody answered it",
    "timed_out": "nobody answered in time, so it is denied",
    "cancelled": "the execution went on without it, or was cancelled",
}


def _choice_of(answer: ApprovalAnswer, options: Sequence[str]) -> str:
    """The option that an answer means. Raises BadRequest (invalid_choice)."""
    listed = ", ".join(repr(one) for one in options)
    if (answer.choice is None) == (answer.approved is None):
        raise BadRequest("invalid_choice", f"give choice, one of {listed}, or approved, true or false; and not both")
    if answer.choice is not None:
        if answer.choice not in options:
            raise BadRequest("invalid_choice", f"choice is {answer.choice!r}; it should be one of {listed}")
        return answer.choice
    if not answer.approved:
        return DENY  # also where the options name a denial otherwise: core takes every word but a grant for one
    granting = next((one for one in GRANTS if one in options), None)
    if granting is None:
        raise BadRequest("invalid_choice", f"none of the options is a plain yes; give choice, one of {listed}")
    return granting
