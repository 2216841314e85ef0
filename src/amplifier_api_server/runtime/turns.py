"""One turn from its prompt to its terminal event: run, cut when it must be, made durable, told.

Invariant: `complete` is told only after the checkpoint was answered; a turn that failed, or could not be made durable,
leaves transcript and state as they were before it; every turn ends with exactly one terminal event.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from amplifier_api_server.runtime.checkpoint import NotDurableError, deliver
from amplifier_api_server.runtime.events import clean
from amplifier_api_server.runtime.host import Host
from amplifier_api_server.runtime.protocol import Checkpoint, EventName, Failure, TurnResult, TurnStatus
from amplifier_api_server.runtime.transcript import Messages, as_json, is_valid, repaired
from amplifier_api_server.runtime.turn_port import Turn

log = logging.getLogger(__name__)

CUT_SECONDS = 0.8  # how long a cancelled execute may take to come back; then its session is rebuilt without it
CANCELLED_TEXT = "(This turn was cancelled.)"

Ended = Literal[TurnStatus.COMPLETED, TurnStatus.FAILED, TurnStatus.CANCELLED]


class RunningTurn:
    """A turn and the task that runs it. `run` never raises."""

    def __init__(self, session_id: str, request_id: str, prompt: str, host: Host) -> None:
        self.turn = Turn(request_id, self._events_are_full)
        self.result: TurnResult | None = None
        self.host_is_lost = False  # an orphaned execute may still write into it: it must be replaced
        self.before: Messages = []
        self.after: Messages = []  # the transcript that a session after this turn has
        self.state_after: dict[str, Any] = {}
        self._session_id = session_id
        self._prompt = prompt
        self._host = host
        self._stop_failure: Failure | None = None
        self._stop_asked = False
        self.ended = asyncio.get_running_loop().create_future()

    def cancel(self, failure: Failure | None = None) -> None:
        """End it soon: cancelled, or failed with `failure`. Idempotent; the first reason counts."""
        if not self._stop_asked:
            self._stop_asked = True
            self._stop_failure = failure
            self.turn.cancel()

    def _events_are_full(self) -> None:
        self.cancel(Failure(code="turn_too_large", detail="the turn made more events than can be kept"))

    async def run(self) -> None:
        try:
            await self._run()
        except Exception:
            log.exception("a turn broke off")
            self.host_is_lost = True
            self._end_with_error("turn_failed", "the turn broke off by an error of the runtime's own")
        finally:
            if not self.turn.log.closed:  # its task was cancelled while it waited for the checkpoint's answer
                self._end_with_error("not_durable", "the session was closed before the turn was kept")
            self._host.port.turn = None
            if not self.ended.done():
                self.ended.set_result(None)

    async def _run(self) -> None:
        host, turn = self._host, self.turn
        self.before = self.after = await host.transcript()
        self.state_after = state_before = host.state()
        host.begin_turn(await host.messages())
        host.port.turn = turn
        status, response = await self._execute()
        turn.close()
        messages: Messages = []
        if status is not TurnStatus.FAILED:
            messages = await self._added(status, response)
        state = state_before if status is TurnStatus.FAILED else host.state()
        checkpoint = self._checkpoint(status, response, messages, state)
        try:
            answer = await deliver(host.port.services.gateway, checkpoint)
        except NotDurableError as error:
            log.error("a turn could not be made durable: %s", error)
            await self._roll_back(state_before)
            self._end_with_error("not_durable", str(error))
            return
        if status is TurnStatus.FAILED:
            await self._roll_back(state_before)
        else:
            self.after, self.state_after = self.before + messages, state
            if not self.host_is_lost:
                host.record(messages)
        turn.log.append(answer.event, answer.data)
        self.result = answer.result

    async def _execute(self) -> tuple[Ended, str]:
        """Run the prompt, to its end or until it is cut. The transcript is not looked at yet."""
        turn, claim = self.turn, self._host.port.services.claim
        task = asyncio.ensure_future(self._host.execute(self._prompt))
        watched: set[asyncio.Future[Any]] = {task, turn.cancelled}
        await asyncio.wait(watched, timeout=claim.turn_timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            if not self._stop_asked:
                waiting = ", ".join(one.approval_id for one in turn.approvals.waiting)
                told = f"; it was waiting for an answer to {waiting}"[:500] if waiting else ""
                detail = f"the turn took longer than {claim.turn_timeout_seconds:g} s{told}"
                self.cancel(Failure(code="turn_timeout", detail=detail))
            await self._cut(task)
        return self._outcome(task)

    async def _cut(self, task: asyncio.Future[str]) -> None:
        """Core's cancel, not the task's: that would orphan the loop, which would go on calling the model."""
        try:
            async with asyncio.timeout(CUT_SECONDS):
                await self._host.cancel()
                await asyncio.wait({task})
        except TimeoutError:
            log.warning("a cancelled turn did not come back; its session is made anew")
            self.host_is_lost = True
            task.cancel()
            task.add_done_callback(_forget)

    def _outcome(self, task: asyncio.Future[str]) -> tuple[Ended, str]:
        turn = self.turn
        error = task.exception() if task.done() and not task.cancelled() else None
        if self._stop_failure is not None:
            turn.failure = self._stop_failure
            return TurnStatus.FAILED, ""
        if error is not None and not self._stop_asked:
            log.warning("a turn failed: %s", turn.failure.code if turn.failure else type(error).__name__)
            turn.fail(_failure_of(error))
            return TurnStatus.FAILED, ""
        if self._stop_asked:
            return TurnStatus.CANCELLED, "" if error is not None or not task.done() else clean(task.result())
        return TurnStatus.COMPLETED, clean(task.result())

    async def _added(self, status: Ended, response: str) -> Messages:
        """What the turn adds to the transcript, as JSON. Made up where the session can't be asked or lost it."""
        closing = response or (CANCELLED_TEXT if status is TurnStatus.CANCELLED else "")
        made_up = [{"role": "user", "content": clean(self._prompt)}, {"role": "assistant", "content": closing}]
        if self.host_is_lost:
            return made_up
        added = as_json(await self._host.added())
        if is_valid(added):
            return added
        if any(message.get("role") == "user" for message in added):  # else its loop never began
            made_up = as_json(repaired(added, closing))
        self.host_is_lost = True  # it is made anew with what the control plane will know
        return made_up

    def _checkpoint(self, status: Ended, response: str, messages: Messages, state: dict[str, Any]) -> Checkpoint:
        turn = self.turn
        return Checkpoint(
            session_id=self._session_id,
            request_id=turn.request_id,
            status=status,
            base=len(self.before),
            messages=messages,
            response=response,
            finish_reason=turn.finish_reason if status is TurnStatus.COMPLETED else None,
            tool_calls=turn.tool_calls,
            failure=turn.failure if status is TurnStatus.FAILED else None,
            events=turn.log.text(),
            last_event=turn.log.last,
            state=state,
        )

    async def _roll_back(self, state: dict[str, Any]) -> None:
        if not self.host_is_lost:
            await self._host.set_messages(self.before)
            self._host.set_state(state)

    def _end_with_error(self, code: str, detail: str) -> None:
        problem = {"type": f"/errors/{code}", "title": "The sandbox failed", "status": 502, "code": code}
        problem |= {"detail": detail, "request_id": self.turn.request_id}
        self.turn.close()
        if not self.turn.log.closed:
            self.turn.log.append(EventName.ERROR, problem)
        self.result = TurnResult(
            request_id=self.turn.request_id, status=TurnStatus.FAILED, tool_calls=self.turn.tool_calls, problem=problem
        )


def _failure_of(error: BaseException) -> Failure:
    """For a failure that nobody named: core leaves only words, `Execution failed: CLASS: words`."""
    words = clean(str(error).removeprefix("Execution failed: "))
    return Failure(code="turn_failed", detail=words[:2000] or type(error).__name__)


def _forget(task: asyncio.Future[str]) -> None:
    if not task.cancelled():
        task.exception()
