"""Waiting that a cancelled turn ends at once, whatever is waited for does about it.

Invariant: none of these waits outlasts the cancel by more than `GRACE_SECONDS`. What ignores its cancellation is
abandoned: its task goes on by itself, its outcome is dropped.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from amplifier_api_server.runtime.turn_port import CallClock, Turn

log = logging.getLogger(__name__)

GRACE_SECONDS = 0.4  # for a stream to close, a process tree to be killed; a cancel as a whole has one second

Outcome = TypeVar("Outcome")

_abandoned: set[asyncio.Task[Any]] = set()  # asyncio keeps only weak references to tasks


class CancelledTurnError(Exception):
    """The turn was cancelled while it waited."""


async def until_cancelled(
    turn: Turn, work: Coroutine[Any, Any, Outcome], *, timeout_seconds: float | None = None
) -> Outcome:
    """What `work` gives or raises. CancelledTurnError when the turn is cancelled first, TimeoutError at the timeout."""
    return await _first_of(work, turn.cancelled, timeout_seconds)


async def until_stopped(work: Coroutine[Any, Any, Outcome], *, timeout_seconds: float) -> Outcome:
    """As `until_cancelled`, for work outside of any turn."""
    return await _first_of(work, None, timeout_seconds)


async def _first_of(
    work: Coroutine[Any, Any, Outcome], cancelled: asyncio.Future[None] | None, timeout_seconds: float | None
) -> Outcome:
    clock = CallClock(math.inf if timeout_seconds is None else timeout_seconds)
    with clock.running():
        task = asyncio.ensure_future(work)
    watched: set[asyncio.Future[Any]] = {task} if cancelled is None else {task, cancelled}
    try:
        ended: set[asyncio.Future[Any]] = set()
        while not ended and not clock.is_over:
            ended, _ = await asyncio.wait(watched, timeout=clock.wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if cancelled is not None and cancelled.done():
            raise CancelledTurnError
        raise TimeoutError
    finally:
        if not task.done():
            await stop(task)


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait a little for it to end; then let it go."""
    task.cancel()
    _abandoned.add(task)
    task.add_done_callback(_forget)
    await asyncio.wait({task}, timeout=GRACE_SECONDS)
    if not task.done():
        log.warning("abandoned a task that ignores its cancellation: %s", getattr(task.get_coro(), "__qualname__", "?"))


def _forget(task: asyncio.Task[Any]) -> None:
    _abandoned.discard(task)
    if not task.cancelled():
        task.exception()  # so that asyncio doesn't report it as never retrieved
