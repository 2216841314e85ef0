"""The gateway's path for approvals: what a runtime says of a person's consent that its turn waits for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

from pydantic import ValidationError

from amplifier_api_server.control_plane.errors import status_of
from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads
from amplifier_api_server.control_plane.model_gateway.answers import Receive, Refusal, Scope, Send, respond
from amplifier_api_server.control_plane.model_gateway.bodies import Bodies
from amplifier_api_server.runtime.protocol import ApprovalEvent, Failure, Gateway
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import RuntimeId, TurnId

OnApproval = Callable[[RuntimeId, TurnId, ApprovalEvent], Awaitable[None]]

PATH: Final = re.compile(Gateway.APPROVALS.replace("{request_id}", r"([0-9A-Za-z_-]{1,128})"))
_MAX_BYTES = 64 * 1024
_SECONDS = 15.0


class ApprovalNotes:
    """Answers `Gateway.APPROVALS`. `told` is what is done with one."""

    def __init__(self, bodies: Bodies, told: OnApproval) -> None:
        self._bodies = bodies
        self._told = told

    async def take(self, runtime_id: RuntimeId, turn_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """204, or a `Failure`. Raises Disconnected."""
        try:
            with self._bodies.request(runtime_id) as body:
                event = _event_in(await body.read(scope, receive, _MAX_BYTES))
            async with asyncio.timeout(_SECONDS):
                await self._told(runtime_id, TurnId(turn_id), event)
            await respond(send, 204, b"")
        except Refusal as refusal:
            await _fail(send, refusal.status, Failure(code=refusal.code, detail=refusal.detail))
        except TimeoutError:
            await _fail(send, 503, Failure(code="unavailable", detail="try again", retry_after_seconds=1))
        except DomainError as error:
            await _fail(send, status_of(error), Failure(code=error.stable_code, detail=error.detail))


def _event_in(raw: bytes) -> ApprovalEvent:
    """Raises Refusal (422)."""
    try:
        return ApprovalEvent.model_validate(loads(raw))
    except UnboundedJSON as error:
        raise Refusal(422, "invalid_request", f"no valid approval: {error}") from error
    except ValidationError as error:
        where = ", ".join(".".join(map(str, one["loc"])) for one in error.errors(include_input=False)[:5])
        raise Refusal(422, "invalid_request", f"no valid approval: {where}"[:500]) from error


async def _fail(send: Send, status: int, failure: Failure) -> None:
    await respond(send, status, failure.model_dump_json().encode())
