"""A turn's end made durable: handed to the control plane, again and again for a while when it can't be reached.

Invariant: `deliver` returns an answer only when the control plane has committed the turn. Handing it over twice is
harmless there, so a lost answer is asked for again.
"""

from __future__ import annotations

import asyncio
import logging

from pydantic import ValidationError

from amplifier_api_server.runtime.gateway import Gateway, GatewayError
from amplifier_api_server.runtime.protocol import (
    MAX_CHECKPOINT_BYTES,
    TERMINAL_EVENTS,
    Checkpoint,
    CheckpointAnswer,
    Failure,
)
from amplifier_api_server.runtime.protocol import Gateway as GatewayPath

log = logging.getLogger(__name__)

DELIVER_SECONDS = 20.0  # a control plane that restarts is back by then, or this sandbox is ended anyway
ATTEMPT_SECONDS = 15.0
FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 2.0
MAX_ANSWER_BYTES = MAX_CHECKPOINT_BYTES


class NotDurableError(Exception):
    """The turn could not be made durable."""


async def deliver(
    gateway: Gateway, checkpoint: Checkpoint, *, within_seconds: float = DELIVER_SECONDS
) -> CheckpointAnswer:
    """Raises NotDurableError when the control plane refused it, or could not be reached in time."""
    body = checkpoint.model_dump_json(exclude_none=True).encode()
    if len(body) > MAX_CHECKPOINT_BYTES:
        raise NotDurableError(f"the turn has {len(body)} bytes; {MAX_CHECKPOINT_BYTES} can be kept")
    path = GatewayPath.CHECKPOINT.format(request_id=checkpoint.request_id)
    loop = asyncio.get_running_loop()
    deadline, delay_seconds, reason = loop.time() + within_seconds, FIRST_DELAY_SECONDS, "no time to try"
    while (left_seconds := deadline - loop.time()) > 0:
        try:
            return await _attempt(gateway, path, body, min(ATTEMPT_SECONDS, left_seconds))
        except GatewayError as error:
            reason = str(error)
        log.warning("a checkpoint did not get through, trying again: %s", reason)
        await asyncio.sleep(min(delay_seconds, max(deadline - loop.time(), 0)))
        delay_seconds = min(delay_seconds * 2, MAX_DELAY_SECONDS)
    raise NotDurableError(f"the control plane could not be reached for {within_seconds:g} s: {reason}")


async def _attempt(gateway: Gateway, path: str, body: bytes, timeout_seconds: float) -> CheckpointAnswer:
    """One POST. Raises GatewayError when it is worth another, NotDurableError when it is not."""
    async with gateway.request("POST", path, body=body, idle_timeout_seconds=timeout_seconds) as answer:
        status, told = answer.status, await answer.read(MAX_ANSWER_BYTES)
    if status >= 500 or status in (408, 425, 429):  # noqa: PLR2004
        raise GatewayError(f"the control plane answered {status}")
    if status != 200:  # noqa: PLR2004
        raise NotDurableError(_refusal(status, told))
    try:
        checked = CheckpointAnswer.model_validate_json(told)
    except ValidationError as error:
        raise NotDurableError(f"the control plane's answer is not understood: {error.error_count()} errors") from None
    if checked.event not in TERMINAL_EVENTS:
        raise NotDurableError(f"the control plane's answer holds {checked.event}, which ends no turn")
    return checked


def _refusal(status: int, told: bytes) -> str:
    try:
        failure = Failure.model_validate_json(told)
    except ValidationError:
        return f"the control plane refused it with {status}"
    return f"the control plane refused it: {failure.detail} ({failure.code})"
