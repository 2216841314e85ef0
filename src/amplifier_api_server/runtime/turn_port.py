"""Where a session's modules meet the turn that they work for: the direct sink of tokens and tool calls, and
cancellation.

Owns what a turn has shown so far. Refuses hooks on this path: a hook a token is four times slower than this call.
Invariant: once closed, a turn takes nothing more, whoever still holds it; an abandoned tool can't write into the next
one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.bounds import bounded_output, bounded_text
from amplifier_api_server.runtime.events import EventLog, LogFullError, clean
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.protocol import MAX_TURN_EVENTS_BYTES, Claim, EventName, Failure, ToolCallEvent

CAPABILITY = "amplifier_api_server.turn_port"
MAX_ERROR_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Services:
    """What every session of this runtime shares."""

    claim: Claim
    gateway: Gateway
    workspace: Path
    collections: Path


class Turn:
    """One turn as its modules see it. `on_full` is called when it has made more events than are kept."""

    def __init__(
        self, request_id: str, on_full: Callable[[], None], *, limit_bytes: int = MAX_TURN_EVENTS_BYTES
    ) -> None:
        self.request_id = request_id
        self.log = EventLog(request_id, limit_bytes=limit_bytes)
        self._on_full = on_full
        self.tool_calls: list[ToolCallEvent] = []
        self.failure: Failure | None = None  # why it fails, said by whoever knew first
        self.cancelled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_open = True
        self._step_text: list[str] = []
        self._started: dict[str, tuple[str, float]] = {}

    def token(self, text: str) -> None:
        """A piece of the model's answer, shown at once."""
        if self.is_open and text:
            text = clean(text)
            self._step_text.append(text)
            self._append(EventName.TOKEN, {"content": text})

    def begin_step(self) -> None:
        """A model call begins: `step_text` starts anew."""
        self._step_text.clear()

    @property
    def step_text(self) -> str:
        return "".join(self._step_text)

    def tool_started(self, call_id: str, tool: str, arguments: dict[str, Any]) -> None:
        if self.is_open:
            self._started[call_id] = (tool, time.monotonic())
            self._show(ToolCallEvent(tool=tool, status="started", call_id=call_id, input=bounded_input(arguments)))

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
        for call_id in list(self._started):
            self.tool_failed(call_id, "the turn ended before it did")
        self.is_open = False

    def _ended(self, call_id: str, *, output: Any, error: str | None) -> None:
        if not self.is_open or call_id not in self._started:
            return
        tool, began = self._started.pop(call_id)
        ended = ToolCallEvent(
            tool=tool,
            status="completed" if error is None else "failed",
            call_id=call_id,
            output=output,
            error=error,
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        self.tool_calls.append(ended)
        self._show(ended)

    def _show(self, event: ToolCallEvent) -> None:
        self._append(EventName.TOOL_CALL, event.model_dump(exclude_none=True), reserved=event.status != "started")

    def _append(self, event: str, data: dict[str, Any], *, reserved: bool = False) -> None:
        """To the log, unless it is full: modules learn of that by the turn's being stopped, not by an exception."""
        try:
            self.log.append(event, data, reserved=reserved)
        except LogFullError:
            self._on_full()


def bounded_input(arguments: dict[str, Any]) -> dict[str, Any]:
    """A call's input as its event shows it."""
    bounded = bounded_output(arguments)
    return bounded if isinstance(bounded, dict) else {"cut": bounded}


class TurnPort:
    """A session's standing connection point; `turn` is the one that runs, if any does."""

    def __init__(self, services: Services, working_dir: Path) -> None:
        self.services = services
        self.working_dir = working_dir
        self.turn: Turn | None = None

    def current(self) -> Turn:
        """The running turn. A module takes it once, at the start of its work, and keeps to it."""
        if self.turn is None:
            raise RuntimeError("no turn runs in this session")
        return self.turn
