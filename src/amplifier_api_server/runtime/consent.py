"""Asking a person for consent: hooks' `ask_user`, and what modules ask by themselves, brought to the turn.

Owns a session's approval system, as core and modules know it, and what the session remembers of "Allow always". Refuses to
know who answers. Invariants: what nobody answers is denied, whatever the one who asks would do then; what can't be shown
whole is denied or told apart from all that begins like it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

from amplifier_core import ApprovalResponse
from amplifier_core.approval import ApprovalTimeoutError

from amplifier_api_server.runtime.approvals import ALWAYS, DENY, GRANTS
from amplifier_api_server.runtime.events import clean, encoded
from amplifier_api_server.runtime.gateway import Gateway, GatewayError
from amplifier_api_server.runtime.protocol import (
    MAX_APPROVAL_OPTION_CHARS,
    MAX_APPROVAL_OPTIONS,
    MAX_APPROVAL_PROMPT_CHARS,
    ApprovalEvent,
)
from amplifier_api_server.runtime.protocol import Gateway as GatewayPath
from amplifier_api_server.runtime.turn_port import Turn, TurnPort, call_clock_stopped

log = logging.getLogger(__name__)

USUAL_OPTIONS = ("Allow once", ALWAYS, DENY)
MAX_CONSENTS = 256  # that a session remembers; the oldest are asked for again
TELL_TRIES = 3
TELL_SECONDS = 5.0
TELL_DELAY_SECONDS = 0.3
_OK = range(200, 300)
_CLIENT_ERRORS = range(400, 500)

_telling: set[asyncio.Task[None]] = set()  # asyncio keeps only weak references to tasks
_call: ContextVar[tuple[Turn, str, str] | None] = ContextVar("approval_call", default=None)


def about_call(turn: Turn, tool: str, call_id: str) -> None:
    """From here on, in this task and those that it starts, what this turn asks for is about this call of a tool."""
    _call.set((turn, tool, call_id))


def shown(text: str, limit_chars: int = MAX_APPROVAL_PROMPT_CHARS) -> str:
    """What a person is shown of a question. What is cut is told apart from everything else that begins like it."""
    if len(text) <= limit_chars:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    told = f"… (cut: {len(text)} characters, SHA-256 {digest})"
    return text[: limit_chars - len(told)] + told


class Consents:
    """What was allowed for good in a session and its children: by the very words of the question, and its options."""

    def __init__(self) -> None:
        self._digests: dict[str, None] = {}

    def holds(self, prompt: str, options: Sequence[str]) -> bool:
        return ALWAYS in options and _digest(prompt, options) in self._digests

    def add(self, prompt: str, options: Sequence[str]) -> None:
        digest = _digest(prompt, options)
        self._digests.pop(digest, None)
        self._digests[digest] = None
        while len(self._digests) > MAX_CONSENTS:
            del self._digests[next(iter(self._digests))]

    def state(self) -> list[str]:
        """As JSON, for `restore`."""
        return list(self._digests)

    def restore(self, state: Any) -> None:
        told = state if isinstance(state, list) else []
        self._digests = dict.fromkeys(one for one in told[-MAX_CONSENTS:] if isinstance(one, str))


def _digest(prompt: str, options: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([prompt, *options]).encode()).hexdigest()


class Approvals:
    """A session's approval system, as core and modules ask it. `consents` are the session's at the root."""

    def __init__(self, port: TurnPort, consents: Consents) -> None:
        self._port = port
        self.consents = consents

    async def request_approval(self, prompt: str, options: list[str], timeout: float, default: str) -> str:
        """Core's protocol. Raises ApprovalTimeoutError, which core takes for a denial because `default` is one."""
        chosen = await self.ask(prompt, options, timeout)
        if chosen is not None:
            return chosen
        if default == "deny":
            raise ApprovalTimeoutError("nobody answered in time")
        log.warning("an approval that nobody answered is denied, though the one who asked would allow it then")
        return DENY

    async def ask(
        self, prompt: str, options: Sequence[str], timeout_seconds: Any, tool: str | None = None
    ) -> str | None:
        """The chosen option, at once where it was allowed for good; None when nobody chose in time."""
        prompt, options = clean(str(prompt)), [clean(str(one)) for one in options or USUAL_OPTIONS]
        if self.consents.holds(prompt, options):
            return ALWAYS
        turn = self._port.turn
        if turn is None or not turn.is_open or turn.cancelled.done():
            log.warning("an approval was asked for outside of a turn; it is denied")
            return DENY
        if not _can_be_shown(options) or not turn.root.approvals.takes_more:
            log.warning("an approval can't be asked for: too many of them, or of its options; it is denied")
            return DENY
        event = self._event(turn, prompt, options, timeout_seconds, tool)
        with call_clock_stopped():
            chosen = await turn.root.approvals.ask(turn, event, self._teller(turn.request_id))
        if chosen == ALWAYS:
            self.consents.add(prompt, options)
        return chosen

    def _event(
        self, turn: Turn, prompt: str, options: list[str], timeout_seconds: Any, tool: str | None
    ) -> ApprovalEvent:
        most = self._port.services.claim.approval_timeout_seconds
        given = isinstance(timeout_seconds, int | float) and 0 < timeout_seconds < most
        seconds = float(timeout_seconds) if given else most
        about, call = _call.get(), turn.only_call  # a loop from outside does not say which call it asks for
        if about is not None and about[0] is turn:
            call = about[1:]
        event = ApprovalEvent(
            approval_id=f"apr_{secrets.token_hex(12)}",
            status="requested",
            prompt=shown(prompt),
            options=options,
            timeout_seconds=seconds,
            expires_at=f"{datetime.now(UTC) + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S.%fZ}",
            tool=clean(call[0] if call is not None else tool or "")[:256] or None,
            call_id=clean(call[1])[:256] if call is not None else None,
        )
        return turn.marked(event)

    def _teller(self, request_id: str) -> Callable[[ApprovalEvent], None]:
        gateway = self._port.services.gateway

        def tell(event: ApprovalEvent) -> None:
            task = asyncio.create_task(_tell(gateway, request_id, event))
            _telling.add(task)
            task.add_done_callback(_telling.discard)

        return tell


def _can_be_shown(options: Sequence[str]) -> bool:
    return len(options) <= MAX_APPROVAL_OPTIONS and all(0 < len(one) <= MAX_APPROVAL_OPTION_CHARS for one in options)


async def _tell(gateway: Gateway, request_id: str, event: ApprovalEvent) -> None:
    """Tell the control plane, for whoever follows the tenant's events. The turn's own stream has it in any case."""
    path = GatewayPath.APPROVALS.format(request_id=request_id)
    body, why = event.model_dump_json(exclude_none=True).encode(), ""
    for attempt in range(TELL_TRIES):
        await asyncio.sleep(attempt * TELL_DELAY_SECONDS)
        try:
            async with asyncio.timeout(TELL_SECONDS):
                async with gateway.request("POST", path, body=body, idle_timeout_seconds=TELL_SECONDS) as answer:
                    await answer.read(64 * 1024)
        except (GatewayError, TimeoutError) as error:
            why = str(error) or "time-out"
            continue
        if answer.status in _OK:
            return
        why = f"it answered {answer.status}"
        if answer.status in _CLIENT_ERRORS:
            break
    log.warning("the control plane was not told of an approval: %s", why)


class Provider:
    """The same by another of the ecosystem's protocols: `approval.register_provider`, which hooks-approval offers."""

    def __init__(self, approvals: Approvals) -> None:
        self._approvals = approvals

    async def request_approval(self, request: Any) -> ApprovalResponse:
        """Core's ApprovalProvider. A time-out is a denial too: a caller's own answer to one might be to go on."""
        words = str(request.action)
        if request.details:
            words += "\n" + encoded(request.details)
        asked = f"{request.tool_name}: {words}"
        chosen = await self._approvals.ask(asked, USUAL_OPTIONS, request.timeout, str(request.tool_name))
        if chosen is None:
            return ApprovalResponse(approved=False, reason="nobody answered in time")
        granted = chosen in GRANTS
        reason = "allowed by a person" if granted else "denied by a person"
        return ApprovalResponse(approved=granted, reason=reason, remember=chosen == ALWAYS)
