"""One connection: reads messages, has them carried out side by side, sends the answers and the events.

Owns who is there, how fast messages are taken, and how the connection ends. Invariants: nothing is done for somebody who is
not known; a message that can't be read costs an answer, not the connection, until there are too many; when the caller may no
more, everything of the connection ends at once, and it says why.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.errors import our_mistake, problem, status_of
from amplifier_api_server.control_plane.origin import current_origin, set_origin
from amplifier_api_server.control_plane.pace import Pace, weight_of
from amplifier_api_server.control_plane.routes import ClientLeft, Receive, Send
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.telemetry import Access, Telemetry
from amplifier_api_server.control_plane.upgraded import GOING_AWAY
from amplifier_api_server.control_plane.websocket.answers import of_error, written
from amplifier_api_server.control_plane.websocket.callers import Caller, demand_no_less, demand_same
from amplifier_api_server.control_plane.websocket.following import Following
from amplifier_api_server.control_plane.websocket.messages import (
    Authenticate,
    Detach,
    EventsUnsubscribe,
    Message,
    NoMessage,
    Ping,
    Unreadable,
    read,
)
from amplifier_api_server.control_plane.websocket.outbox import Outbox
from amplifier_api_server.control_plane.websocket.settings import Websocket
from amplifier_api_server.tenants.errors import (
    DomainError,
    Forbidden,
    Refused,
    Unauthenticated,
    Unavailable,
)

log = structlog.get_logger(__name__)

# Close codes; docs/websocket.md lists them all.
UNREADABLE: Final = 4400
NOT_AUTHENTICATED: Final = 4401
MAY_NO_MORE: Final = 4403
AUTH_TIMEOUT: Final = 4408
TRY_AGAIN: Final = 1013

_MAX_UNREADABLE: Final = 20  # in a row
_LAST_WORDS_SECONDS: Final = 2.0
_CLIENT_CLOSED: Final = 499
_LEFT: Final = 1006
_MISTAKE: Final = 1011

# Carries out one message of a caller on a connection.
Work = Callable[["Connection", Principal, Message, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ending:
    code: int
    reason: str
    error: DomainError | None = None


@dataclass(frozen=True, slots=True)
class Uses:
    """What connections share."""

    settings: Websocket
    streams: OpenStreams
    telemetry: Telemetry
    clock: Clock
    make_caller: Callable[[str], Caller]  # of a token
    work: Work
    beside: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]  # what goes on when its connection ends


class Connection:
    """`run` it once, in the task of its own."""

    def __init__(self, uses: Uses, receive: Receive, send: Send, caller: Caller | None) -> None:
        self.id = "con_" + os.urandom(12).hex()
        self._uses = uses
        self._receive = receive
        self._send = send
        self._caller = caller
        self._principal: Principal | None = None
        self.outbox = Outbox(self._send_text)
        self.following = Following(self.outbox, uses.settings.max_streams, self._when_idle)
        self.large_answers = asyncio.Lock()  # one is made after another, each once there is room
        self._pace = Pace(uses.settings.messages_per_second)
        self._requests: set[asyncio.Task[None]] = set()
        self._unreadable = 0
        self._count = 0
        self._task: asyncio.Task[Any] | None = None
        self._ending: Ending | None = None
        self._is_left = False
        self._is_draining = False

    async def run(self, principal: Principal | None, known: Callable[[], None]) -> None:
        """Until it ends. `principal` is the upgrade request's caller; `known` is called once there is one."""
        self._task = asyncio.current_task()
        sending = asyncio.create_task(self._pump())
        try:
            await self._talk(principal, known)
        except ClientLeft:
            self._is_left = True
        except asyncio.CancelledError:
            if self._ending is None or self._task is None or self._task.uncancel() > 0:
                raise  # the server's own: it is stopping
        finally:
            self._task = None
            if self._principal is not None:
                self._uses.streams.remove(self._principal, self._may_no_more)
            await self.following.end()
            await self._say_goodbye()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self.outbox.close()

    async def _talk(self, principal: Principal | None, known: Callable[[], None]) -> None:
        if principal is None:
            principal = await self._first_message()
            if principal is None:
                return
        else:
            self._welcome(principal, None)
        known()
        while True:
            await self.outbox.room()
            text = await self._next_text()
            await self._pace.take(weight_of(text or ""))
            await self._take(text)

    # What comes.

    async def _next_text(self) -> str | None:
        """A message's text; None for one that is none. Raises ClientLeft."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            raise ClientLeft
        text: str | None = message.get("text")
        return text

    async def _take(self, text: str | None) -> None:
        try:
            if text is None:
                raise NoMessage("a message should be a text frame", code="invalid_json")
            message, given = read(text)
        except Unreadable as error:
            self._unreadable += 1
            self._answer_error(error, error.message_id)
            if self._unreadable >= _MAX_UNREADABLE:
                self.end(Ending(UNREADABLE, f"{_MAX_UNREADABLE} messages in a row could not be read", error))
                await asyncio.sleep(0)
            return
        self._unreadable = 0
        match message:
            case Ping():
                self.answer("pong", message.id, {})
            case Authenticate():
                await self._authenticate_again(message)
            case Detach() | EventsUnsubscribe():
                self._stop_following(message, given)
            case _:
                self._begin(message, given)

    def _stop_following(self, message: Detach | EventsUnsubscribe, given: dict[str, Any]) -> None:
        try:
            if isinstance(message, Detach):
                session_id = self.following.stop(message.request_id)
                told = {"session_id": session_id, "request_id": message.request_id}
                self.answer("detached", message.id, told)
            else:
                self.following.stop_tenant()
                self.answer("events.unsubscribed", message.id, {})
        except DomainError as error:
            self._answer_error(error, message.id, **_about(given))

    def _begin(self, message: Message, given: dict[str, Any]) -> None:
        most = self._uses.settings.max_requests
        if len(self._requests) >= most:
            detail = f"{most} messages of this connection are in work; wait for the answer to one"
            error = Refused(detail, code="too_many_requests", limit="websocket.max_requests", limit_value=most)
            self._answer_error(error, message.id, **_about(given))
            return
        task = self._uses.beside(self._carry_out(message, given))
        self._requests.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._when_idle()

    async def _carry_out(self, message: Message, given: dict[str, Any]) -> None:
        begun, name = perf_counter(), given["type"]
        self._count += 1
        set_origin(current_origin().of_message(f"{self.id}-{self._count}"))
        status, access = 200, Access("WS", f"/ws {name}", current_origin().address)
        try:
            principal = await self._principal_now()
            access.known(principal)
            self._uses.telemetry.api_request(method="WS", path=f"/ws {name}", user_id=principal.member_id)
            await self._uses.work(self, principal, message, given)
        except DomainError as error:
            status, access.code = status_of(error), error.stable_code
            self._answer_error(error, message.id, **_about(given))
        except ClientLeft:
            status = _CLIENT_CLOSED
        except Exception as error:
            status, access.code = 500, "internal"
            log.exception("a message failed", **current_origin().ids, message=name)
            self._uses.telemetry.api_error(error="internal", status=status, kind=type(error).__name__)
            told = problem(status, "internal", our_mistake(), **_about(given))
            self.outbox.answer(written("error", message.id, told))
        finally:
            self._uses.telemetry.api_response(
                access,
                method="WS",
                route=f"/ws {name}",
                status=status,
                seconds=perf_counter() - begun,
            )

    # Who is there.

    async def _first_message(self) -> Principal | None:
        """The caller that `auth` names. None where the connection ends instead."""
        seconds = self._uses.settings.auth_timeout.total_seconds()
        message: Message | None = None
        try:
            async with asyncio.timeout(seconds):
                text = await self._next_text()
                message, _ = read(text or "")
                if not isinstance(message, Authenticate):
                    raise Unauthenticated('the first message should be {"type": "auth", "token": "..."}')
                return await self._authenticated(message)
        except TimeoutError:
            error: DomainError = Unauthenticated(f"nobody said who is there within {seconds:g} s", code="auth_timeout")
            self._ending = Ending(AUTH_TIMEOUT, error.detail, error)
        except DomainError as found:
            self._ending = _ending_of(found)
            self._answer_error(found, message.id if message is not None else getattr(found, "message_id", None))
            self._ending = replace(self._ending, error=None)
        return None

    async def _authenticated(self, message: Authenticate) -> Principal:
        caller = self._uses.make_caller(message.token.get_secret_value())
        principal = await caller.principal()
        if self._principal is not None:
            demand_same(self._principal, principal)
            demand_no_less(self._principal, principal)
        else:
            self._uses.streams.require_room(principal)
        self._caller = caller
        self._welcome(principal, message.id)
        return principal

    async def _authenticate_again(self, message: Authenticate) -> None:
        """A newer token of the same caller. One that is not good changes nothing: the one before holds."""
        try:
            async with asyncio.timeout(self._uses.settings.auth_timeout.total_seconds()):
                await self._authenticated(message)
        except TimeoutError:
            self._answer_error(
                Unavailable("the token could not be looked up in time", retry_after_seconds=1), message.id
            )
        except DomainError as error:
            self._answer_error(error, message.id)

    def _welcome(self, principal: Principal, message_id: str | int | None) -> None:
        if self._principal is not None:
            self._uses.streams.remove(self._principal, self._may_no_more)
        self._principal = principal
        self._uses.streams.add(principal, self._may_no_more)
        expires_at = principal.expires_at
        told = {
            "tenant_id": principal.tenant_id or None,
            "member_id": principal.member_id,
            "role": principal.role,
            "method": principal.method,
            "expires_at": datetime.fromtimestamp(expires_at, UTC) if expires_at is not None else None,
            "connection_id": self.id,
        }
        self.answer("auth.ok", message_id, told)

    async def _principal_now(self) -> Principal:
        """The caller as a request would find them. Raises what ends the connection too."""
        assert self._caller is not None, "it is known"
        assert self._principal is not None, "it is known"
        try:
            now = await self._caller.principal()
            demand_same(self._principal, now)
        except (Unauthenticated, Forbidden) as error:
            self.end(replace(_ending_of(error), error=None))
            raise
        return now

    def _may_no_more(self) -> None:
        """The credential works no more, or holds less than it did."""
        expires_at = self._principal.expires_at if self._principal is not None else None
        error: DomainError
        if expires_at is not None and expires_at <= self._uses.clock.now().timestamp():
            error = Unauthenticated("the credential has expired; connect with a new one", code="token_expired")
        else:
            detail = "the credential was revoked, or holds less than before; connect again"
            error = Forbidden(detail, code="access_ended")
        self.end(_ending_of(error))

    # How it ends.

    def end(self, ending: Ending) -> None:
        """End it this way, from anywhere. The first one counts."""
        if self._ending is None and self._task is not None:
            self._ending = ending
            self._task.cancel()

    def drain(self) -> None:
        """The server is stopping: end it once nothing is under way on it."""
        self._is_draining = True
        self._when_idle()

    def _when_idle(self) -> None:
        if self._is_draining and not self._requests and not len(self.following):
            self.end(Ending(GOING_AWAY, "the server is stopping; connect again"))

    async def _say_goodbye(self) -> None:
        ending = self._ending
        if ending is None or self._is_left:
            return
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                if ending.error is not None:
                    self._answer_error(ending.error, None)
                await self.outbox.sent()
                await self._send({"type": "websocket.close", "code": ending.code, "reason": ending.reason[:100]})
        except (TimeoutError, ClientLeft):
            pass  # it does not read, or is gone: the connection is closed without it

    # What goes.

    def answer(self, kind: str, message_id: str | int | None, members: dict[str, Any]) -> None:
        """Answer a message."""
        self.outbox.answer(written(kind, message_id, members))

    def _answer_error(self, error: DomainError, message_id: str | int | None, **about: str) -> None:
        if isinstance(error, Refused) and self._principal is not None:
            limit = str(error.extra.get("limit", error.stable_code))
            self._uses.telemetry.limit_exceeded(user_id=self._principal.member_id, limit=limit)
        self._uses.telemetry.api_error(error=error.stable_code, status=status_of(error))
        self.outbox.answer(of_error(error, message_id, **about))

    async def _pump(self) -> None:
        try:
            await self.outbox.run()
        except ClientLeft:
            self._is_left = True
            self.end(Ending(_LEFT, "the client left"))
        except Exception:
            log.exception("a socket could not be written", connection_id=self.id)
            self.end(Ending(_MISTAKE, "this is our mistake"))

    async def _send_text(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "text": data.decode()})


def _about(given: dict[str, Any]) -> dict[str, str]:
    """What a message was about, for the error that answers it."""
    return {name: given[name] for name in ("session_id", "request_id") if given.get(name) is not None}


def _ending_of(error: DomainError) -> Ending:
    if isinstance(error, Unavailable):
        return Ending(TRY_AGAIN, error.detail, error)
    return Ending(MAY_NO_MORE if isinstance(error, Forbidden) else NOT_AUTHENTICATED, error.detail, error)
