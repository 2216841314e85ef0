"""Where a session's modules meet the turn that they work for: the direct sink of tokens and tool calls, and
cancellation.

Owns what a turn has shown so far. Refuses hooks on this path: a hook a token is four times slower than this call.
Invariant: once closed, a turn takes nothing more, whoever still holds it; an abandoned tool can't write into the next
one. A child session's turn works for its parent's: it has its identity and ends with it, and shows it only its tools.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.approvals import TurnApprovals
from amplifier_api_server.runtime.bounds import bounded_output, bounded_text
from amplifier_api_server.runtime.events import EventLog, LogFullError, clean
from amplifier_api_server.runtime.finish_reasons import finish_reason_of
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.protocol import (
    MAX_TOOL_OUTPUT_CHARS,
    MAX_TURN_EVENTS_BYTES,
    ApprovalEvent,
    Claim,
    EventName,
    Failure,
    ToolCall,
)
from amplifier_api_server.runtime.sdk_door import SdkDoor

log = logging.getLogger(__name__)

CAPABILITY = "amplifier_api_server.turn_port"
MAX_ERROR_CHARS = 4096
MAX_CHILD_EVENTS = 1000  # of all children of one turn: what runs is seen, and a runaway can't fill the turn's log
MAX_CHILD_CHARS = 2048  # of a child's tool input or output in an event: its parent's model never sees them either

_is_quiet: ContextVar[bool] = ContextVar("turn_is_quiet", default=False)
_clock: ContextVar[CallClock | None] = ContextVar("call_clock", default=None)


@dataclass(frozen=True, slots=True)
class Services:
    """What every session of this runtime shares."""

    claim: Claim
    gateway: Gateway
    workspace: Path
    collections: Path
    door: SdkDoor | None = None  # by which the vendors' SDKs find the gateway


class Turn:
    """One turn as its modules see it. `on_full` is called when it has made more events than are kept."""

    def __init__(
        self, request_id: str, on_full: Callable[[], None], *, limit_bytes: int = MAX_TURN_EVENTS_BYTES
    ) -> None:
        self.request_id = request_id
        self.log = EventLog(request_id, limit_bytes=limit_bytes)
        self._on_full = on_full
        self.finish_reason: str | None = None  # of the latest step's answer
        self.failure: Failure | None = None  # why it fails, said by whoever knew first
        self.cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.approvals = TurnApprovals(self._show_approval)  # its children's too: only the root's are asked
        self.is_open = True
        self.is_answered = False  # the orchestrator said so: what a hook asks a model for after that isn't the answer
        self._step_text: list[str] = []
        self._started: dict[str, tuple[ToolCall, float, int]] = {}  # with when, and its place among all
        self._ended_calls: list[ToolCall | None] = []
        self._child_events = 0

    def token(self, text: str) -> None:
        """A piece of the model's answer, shown at once; dropped while the caller works `TurnPort.quietly`."""
        if self.is_open and text and not self.is_answered and not _is_quiet.get():
            text = clean(text)
            self._step_text.append(text)
            self._append(EventName.TOKEN, {"content": text})

    def answer(self, text: str) -> None:
        """The whole answer, as `execute` gave it: one token when its step has shown nothing."""
        if not self.step_text.strip():
            self.is_answered = False
            self.token(text)

    def begin_step(self) -> None:
        """A model call begins: `step_text` starts anew."""
        self._step_text.clear()
        self.finish_reason = None

    def end_answer(self, finish_reason: Any) -> None:
        """Why the model's answer ended; nothing, where its text is not the turn's own (see `token`)."""
        if self.is_open and not self.is_answered and not _is_quiet.get():
            self.finish_reason = finish_reason_of(finish_reason)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Those that have ended, in the order in which they were made."""
        return [one for one in self._ended_calls if one is not None]

    @property
    def step_text(self) -> str:
        return "".join(self._step_text)

    def tool_started(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        if self.is_open:
            call = ToolCall(tool=tool, status="started", call_id=call_id, input=bounded_input(arguments))
            self._started[call_id] = (call, time.monotonic(), len(self._ended_calls))
            self._ended_calls.append(None)
            self._show(call)

    def tool_completed(self, call_id: str, output: Any) -> None:
        self._ended(call_id, output=bounded_output(output), error=None)

    def tool_failed(self, call_id: str, error: str) -> None:
        self._ended(call_id, output=None, error=bounded_text(error, MAX_ERROR_CHARS))

    def fail(self, failure: Failure) -> None:
        """Say why the turn is going to fail. The first to know is right."""
        if self.failure is None:
            self.failure = failure.model_copy(update={"detail": clean(failure.detail)})

    def cancel(self) -> None:
        if not self.cancelled.done():
            self.cancelled.set_result(None)

    def close(self) -> None:
        """Take nothing more. Tools that were never told ended are told failed, so that every start has its end."""
        self.approvals.close()
        for call_id in list(self._started):
            self.tool_failed(call_id, "the turn ended before it did")
        self.is_open = False

    def _ended(self, call_id: str, *, output: Any, error: str | None) -> None:
        if not self.is_open or call_id not in self._started:
            return
        call, began, place = self._started.pop(call_id)
        ended = {
            "status": "completed" if error is None else "failed",
            "output": output,
            "error": error,
            "duration_ms": round((time.monotonic() - began) * 1000),
        }
        self._ended_calls[place] = call.model_copy(update=ended)
        self._show(call.model_copy(update=ended | {"input": None}))

    def show_child(self, event: ToolCall) -> None:
        """What a child session's tool does: shown, but no tool call of this turn's own."""
        if self.is_open and (event.status != "started" or self._child_events < MAX_CHILD_EVENTS):
            self._child_events += 1
            self._show(event)

    @property
    def takes_child_events(self) -> bool:
        return self.is_open and self._child_events < MAX_CHILD_EVENTS

    @property
    def root(self) -> Turn:
        """The turn that a client asked for."""
        return self

    @property
    def only_call(self) -> tuple[str, str] | None:
        """The tool and the id of the one call that runs now; None where several do, or none."""
        found = [(call.tool, call_id) for call_id, (call, *_) in self._started.items()]
        return found[0] if len(found) == 1 else None

    def marked(self, event: ApprovalEvent) -> ApprovalEvent:
        """The approval with whose it is, where that is a child's."""
        return event

    def _show_approval(self, event: ApprovalEvent) -> None:
        if self.is_open:
            data = event.model_dump(exclude_none=True)
            self._append(EventName.APPROVAL, data, reserved=event.status != "requested")

    def _show(self, event: ToolCall) -> None:
        self._append(EventName.TOOL_CALL, event.model_dump(exclude_none=True), reserved=event.status != "started")

    def _append(self, event: str, data: dict[str, Any], *, reserved: bool = False) -> None:
        """To the log, unless it is full: modules learn of that by the turn's being stopped, not by an exception."""
        try:
            self.log.append(event, data, reserved=reserved)
        except LogFullError:
            self._on_full()


class ChildTurn(Turn):
    """A child session's turn, as its modules see it. It has no log: nobody reads its tokens."""

    def __init__(self, parent: Turn, session_id: str, agent: str) -> None:
        super().__init__(parent.request_id, lambda: None, limit_bytes=0)
        self._parent = parent
        self._session_id = session_id
        self._agent = agent
        self._shown: set[str] = set()
        parent.cancelled.add_done_callback(self._follow)

    def token(self, text: str) -> None:
        if self.is_open and text and not self.is_answered and not _is_quiet.get():
            self._step_text.append(clean(text))

    def show_child(self, event: ToolCall) -> None:
        if self.is_open:
            self._parent.show_child(event)

    @property
    def takes_child_events(self) -> bool:
        return self.is_open and self._parent.takes_child_events

    @property
    def root(self) -> Turn:
        return self._parent.root

    def marked(self, event: ApprovalEvent) -> ApprovalEvent:
        call_id = f"{self._span}.{event.call_id}" if event.call_id else None
        marks = {"agent": self._agent[:256], "agent_session_id": self._session_id[:256], "call_id": call_id}
        return event.model_copy(update=marks)

    def close(self) -> None:
        super().close()
        self._parent.cancelled.remove_done_callback(self._follow)

    def _follow(self, _: asyncio.Future[None]) -> None:
        self.cancel()

    def _show(self, event: ToolCall) -> None:
        """By its parent's log. A call whose start was not shown any more has no end either."""
        if event.status == "started":
            if not self.takes_child_events:
                return
            self._shown.add(event.call_id)
        elif event.call_id not in self._shown:
            return
        else:
            self._shown.discard(event.call_id)
        marked: dict[str, Any] = {
            "agent": self._agent,
            "agent_session_id": self._session_id,
            "call_id": f"{self._span}.{event.call_id}",
        }
        if event.input is not None:
            marked["input"] = bounded_input(event.input, MAX_CHILD_CHARS)
        if event.output is not None:
            marked["output"] = bounded_output(event.output, MAX_CHILD_CHARS)
        self._parent.show_child(event.model_copy(update=marked))

    @property
    def _span(self) -> str:
        """The part of the session's id that is its own: models number their calls anew in each session."""
        return self._session_id.partition("_")[0].rpartition("-")[2]


def bounded_input(arguments: dict[str, Any], limit_chars: int = MAX_TOOL_OUTPUT_CHARS) -> dict[str, Any]:
    """A call's input as its event shows it."""
    bounded = bounded_output(arguments, limit_chars)
    return bounded if isinstance(bounded, dict) else {"cut": bounded}


class CallClock:
    """How long a tool call may take. It stands still while the call waits for a child session, which has limits of its
    own.
    """

    STANDING_SECONDS = 1.0  # how soon it is looked at again while it stands

    def __init__(self, seconds: float) -> None:
        self._left_seconds = seconds
        self._since = time.monotonic()
        self._stops = 0

    @property
    def wait_seconds(self) -> float | None:
        """How long to wait before looking at it again; None: for ever."""
        if self._left_seconds == math.inf:
            return None
        return self.STANDING_SECONDS if self._stops else max(self._left_seconds - (time.monotonic() - self._since), 0.0)

    @property
    def is_over(self) -> bool:
        return not self._stops and time.monotonic() - self._since >= self._left_seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the start of the call's task: whatever it starts finds this clock."""
        token = _clock.set(self)
        try:
            yield
        finally:
            _clock.reset(token)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        if not self._stops:
            self._left_seconds -= time.monotonic() - self._since
        self._stops += 1
        try:
            yield
        finally:
            self._stops -= 1
            self._since = time.monotonic()


@contextmanager
def call_clock_stopped() -> Iterator[None]:
    """Around what a tool call waits for that has limits of its own."""
    clock = _clock.get()
    with clock.stopped() if clock is not None else nullcontext():
        yield


class TurnPort:
    """A session's standing connection point; `turn` is the one that runs, if any does."""

    def __init__(self, services: Services, working_dir: Path) -> None:
        self.services = services
        self.working_dir = working_dir
        self.turn: Turn | None = None
        self._sdk_token = ""

    def current(self) -> Turn:
        """The running turn. A module takes it once, at the start of its work, and keeps to it."""
        if self.turn is None:
            raise RuntimeError("no turn runs in this session")
        return self.turn

    def running_turn_id(self) -> str | None:
        """Whose model calls are made by way of this session."""
        return self.turn.request_id if self.turn is not None and self.turn.is_open else None

    async def sdk_environment(self) -> dict[str, str]:
        """What points the vendors' SDKs, in a command of this session, at the gateway; empty outside of a turn."""
        door = self.services.door
        if door is None or self.turn is None:
            return {}
        self._sdk_token = self._sdk_token or door.register(self)
        try:
            return await door.environment(self._sdk_token)
        except OSError as error:
            log.warning("vendors' SDKs can't be pointed at the gateway: %s", error)
            return {}

    @staticmethod
    @contextmanager
    def quietly() -> Iterator[None]:
        """Around model calls that are not for the user's eyes, as summaries are: their tokens are not shown.

        Holds for the caller's own task and for the tasks that it starts meanwhile.
        """
        token = _is_quiet.set(True)
        try:
            yield
        finally:
            _is_quiet.reset(token)
