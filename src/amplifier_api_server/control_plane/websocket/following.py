"""What one connection follows: executions, and the tenant's events. Each is a task that reads and hands to the outbox.

Owns how many there are and that each ends with the connection. What is followed runs on when nobody follows it. A stream that
waits for its client waits in the outbox, and so reads nothing further.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog

from amplifier_api_server.control_plane.sessions.frames import TurnEvent
from amplifier_api_server.control_plane.tenant_events.followers import Follower
from amplifier_api_server.control_plane.websocket.answers import of_error, of_event, of_tenant_event
from amplifier_api_server.control_plane.websocket.outbox import Outbox
from amplifier_api_server.tenants.errors import Conflict, DomainError, NotFound, Refused, Unavailable
from amplifier_api_server.tenants.ids import SessionId

log = structlog.get_logger(__name__)

_EVENTS: Final = "events"
_SILENCE_SECONDS: Final = 60.0  # a follower looks by itself so often

MessageId = str | int | None


@dataclass(frozen=True, slots=True)
class Followed:
    """An execution to follow. `leave` is safe to call again, and after its events were read."""

    session_id: SessionId
    request_id: str
    events: AsyncGenerator[TurnEvent, None]
    leave: Callable[[], None] = lambda: None


class Following:
    """The streams of one connection."""

    def __init__(self, outbox: Outbox, most: int, on_end: Callable[[], None]) -> None:
        self._outbox = outbox
        self._most = most
        self._on_end = on_end
        self._is_ended = False
        self._held = 0  # places of executions that are being begun
        self._tasks: dict[str, tuple[asyncio.Task[None], SessionId | None]] = {}

    def __len__(self) -> int:
        return self._held + len(self._tasks)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Room for one more, until its `begin`. Raises Refused (`too_many_streams`)."""
        if len(self) >= self._most:
            detail = (
                f"this connection follows {len(self)} of {self._most} streams; detach one, or open another connection"
            )
            raise Refused(detail, code="too_many_streams", limit="websocket.max_streams", limit_value=self._most)
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def demand_not_attached(self, request_id: str) -> None:
        """Raises Conflict: its events would come twice."""
        if request_id in self._tasks:
            raise Conflict(f"this connection follows {request_id} already", code="already_attached")

    def execution(self, followed: Followed, message_id: MessageId) -> None:
        """Send an execution's events. Call it within `place`."""
        if self._is_ended:
            followed.leave()
            return
        work = self._tell(followed, message_id)
        self._begin(followed.request_id, followed.session_id, work, followed.leave)

    def demand_not_subscribed(self) -> None:
        """Raises Conflict: its events would come twice."""
        if _EVENTS in self._tasks:
            raise Conflict("this connection follows the tenant's events already", code="already_subscribed")

    def tenant(self, follower: Follower, message_id: MessageId) -> None:
        """Send the tenant's events. Call it within `place`."""
        if self._is_ended:
            follower.close()
            return
        self._begin(_EVENTS, None, self._tell_tenant(follower, message_id), follower.close)

    def stop(self, request_id: str) -> SessionId:
        """Follow an execution no longer; whose it is. Raises NotFound."""
        task, session_id = self._tasks.pop(request_id, (None, None))
        if task is None or session_id is None:
            raise NotFound(f"this connection does not follow {request_id}", code="not_attached")
        task.cancel()
        return session_id

    def stop_tenant(self) -> None:
        """Follow the tenant's events no longer. Raises NotFound."""
        task, _ = self._tasks.pop(_EVENTS, (None, None))
        if task is None:
            raise NotFound("this connection does not follow the tenant's events", code="not_subscribed")
        task.cancel()

    async def end(self) -> None:
        """Follow nothing any more, for good."""
        self._is_ended = True
        tasks = [task for task, _ in self._tasks.values()]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, name: str, session_id: SessionId | None, work: Any, leave: Callable[[], None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[name] = task, session_id

        def ended(_: object) -> None:
            if self._tasks.get(name, (None, None))[0] is task:
                del self._tasks[name]
            leave()  # one that is cancelled before its first step has not run at all
            self._on_end()

        task.add_done_callback(ended)

    async def _tell(self, followed: Followed, message_id: MessageId) -> None:
        session_id, request_id = followed.session_id, followed.request_id
        error: DomainError
        try:
            async with contextlib.aclosing(followed.events) as events:
                async for event in events:
                    await self._outbox.event(of_event(event, session_id, message_id))
                    if event.is_last:
                        return
            error = Unavailable("the execution's events can't be read any further; attach again", retry_after_seconds=1)
        except DomainError as found:
            error = found
        except Exception:
            log.exception("an execution could not be followed", request_id=request_id)
            error = Unavailable("the execution can't be followed just now; attach again", retry_after_seconds=1)
        await self._outbox.event(of_error(error, message_id, session_id=session_id, request_id=request_id))

    async def _tell_tenant(self, follower: Follower, message_id: MessageId) -> None:
        try:
            while (events := await follower.next(_SILENCE_SECONDS)) is not None:
                for event in events:
                    await self._outbox.event(of_tenant_event(event, message_id))
        except DomainError as error:
            await self._outbox.event(of_error(error, message_id))
        except Exception:
            log.exception("a tenant's events could not be followed", tenant_id=follower.tenant_id)
            gone = Unavailable("the events can't be read just now; subscribe again", retry_after_seconds=1)
            await self._outbox.event(of_error(gone, message_id))
