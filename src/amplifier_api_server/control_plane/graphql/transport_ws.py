"""GraphQL by WebSocket: the subprotocol graphql-transport-ws, which today's clients speak.

Owns one connection: who is on the other end, which operations go on, and why it ends. Its protocol (`upgraded`) bounds its
messages, and closes it where they are not read. Who is calling is asked anew for each operation: what they may do can have
changed since. Invariant: nothing is answered before a credential was believed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import structlog

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.errors import encode
from amplifier_api_server.control_plane.gate import Gate
from amplifier_api_server.control_plane.graphql import problems, requests
from amplifier_api_server.control_plane.graphql.context import Context
from amplifier_api_server.control_plane.graphql.door import GraphqlDoor
from amplifier_api_server.control_plane.graphql.engine import Unusable
from amplifier_api_server.control_plane.graphql.open_operations import OpenOperations
from amplifier_api_server.control_plane.logins import csrf
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.origin import current_origin, set_origin
from amplifier_api_server.control_plane.pace import Pace, weight_of
from amplifier_api_server.control_plane.request_json import parsed
from amplifier_api_server.control_plane.routes import ClientLeft, Receive, Scope, Send
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.upgraded import KNOWN
from amplifier_api_server.tenants.errors import DomainError, Malformed, Refused, Unauthenticated

log = structlog.get_logger(__name__)

PROTOCOL: Final = "graphql-transport-ws"
BAD: Final = 4400  # the protocol's own numbers, as its document has them
UNAUTHORIZED: Final = 4401
FORBIDDEN: Final = 4403
NO_SUBPROTOCOL: Final = 4406
INIT_TIMEOUT: Final = 4408
TAKEN: Final = 4409
TOO_MANY: Final = 4429
INTERNAL: Final = 1011

_MAX_REASON_BYTES: Final = 123  # RFC 6455, 5.5
_MAX_ID_CHARS: Final = 128
_MAX_BEFORE_INIT: Final = 10  # pings and pongs, of which clients send none before they are known


class Closing(Exception):
    """The connection ends, for this reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class GraphqlSockets:
    """The ASGI handler of `/graphql`'s WebSockets."""

    def __init__(self, services: Services, door: GraphqlDoor, is_open: OpenOperations) -> None:
        self._services = services
        self._door = door
        self._open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if PROTOCOL not in scope.get("subprotocols", ()):
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": NO_SUBPROTOCOL, "reason": f"speak {PROTOCOL}"})
            return
        await send({"type": "websocket.accept", "subprotocol": PROTOCOL})
        await _Connection(self._services, self._door, self._open, scope, receive, send).run()


class _Connection:
    """One peer."""

    def __init__(
        self,
        services: Services,
        door: GraphqlDoor,
        is_open: OpenOperations,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._services = services
        self._door = door
        self._open = is_open
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = services.settings
        self._headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self._token: str | None = None  # of connection_init; instead of what the headers carry
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ending: asyncio.Future[Closing] = asyncio.get_running_loop().create_future()
        self._http_request_id: str = scope["state"]["http_request_id"]
        self._count = 0
        self._pace = Pace(services.settings.websocket.messages_per_second)

    async def run(self) -> None:
        """Until either end has had enough. Raises ClientLeft where it was the peer."""
        try:
            principal = await self._initialized()
            with self._open.one(principal), self._watched(principal):
                await self._acknowledge()
                await self._serve()
        except Closing as closing:
            await self._close(closing)
        except Refused as error:
            await self._close(Closing(TOO_MANY, error.detail))
        finally:
            await self._end_operations()

    # Who it is.

    async def _initialized(self) -> Principal:
        """Whoever the first message says it is. Raises Closing."""
        try:
            async with asyncio.timeout(self._settings.websocket.auth_timeout.total_seconds()):
                message = await self._first_message()
        except TimeoutError as error:
            raise Closing(INIT_TIMEOUT, "connection_init did not come in time") from error
        payload = message.get("payload")
        if payload is not None and not isinstance(payload, dict):
            raise Closing(BAD, "connection_init's payload should be an object")
        try:
            self._take_credential(payload or {})
            principal = await self._authenticated()
        except DomainError as error:
            raise Closing(FORBIDDEN, error.detail) from error
        return principal

    async def _first_message(self) -> Mapping[str, Any]:
        """`connection_init`. Raises Closing."""
        for _ in range(_MAX_BEFORE_INIT + 1):
            message = await self._next()
            if message["type"] == "connection_init":
                return message
            if message["type"] == "ping":
                await self._say({"type": "pong"})
            elif message["type"] != "pong":
                raise Closing(UNAUTHORIZED, "send connection_init first")
        raise Closing(TOO_MANY, f"more than {_MAX_BEFORE_INIT} messages came before connection_init")

    async def _acknowledge(self) -> None:
        """From here on its messages may have the full size, and are answered."""
        known = self._scope.get("extensions", {}).get(KNOWN)
        if known is not None:
            known()
        await self._say({"type": "connection_ack"})

    def _take_credential(self, payload: Mapping[str, Any]) -> None:
        """What the payload holds; without any, what the upgrade's headers did."""
        names = [one.header for one in self._settings.auth.keys]
        self._token = requests.credential_in(payload, names)

    async def _authenticated(self) -> Principal:
        """Raises Unauthenticated, Forbidden, Unavailable."""
        authenticator = self._services.authenticator
        if self._token is not None:
            principal = await authenticator.authenticate_token(self._token)
        else:
            principal = await authenticator.authenticate(self._headers)
        if principal.method == "login":  # a browser sends its cookie along for every page (RFC 6455, 10.2)
            csrf.require_same_origin(self._settings, self._headers)
        await Gate(self._services.admission).enter(principal, OPERATIONS["graphql"])
        return principal

    @contextlib.contextmanager
    def _watched(self, principal: Principal) -> Iterator[None]:
        """For as long as the block lasts, whatever ends the credential ends the connection."""
        streams = self._services.streams
        streams.require_room(principal)
        streams.add(principal, self._revoke)
        try:
            yield
        finally:
            streams.remove(principal, self._revoke)

    def _revoke(self) -> None:
        if not self._ending.done():
            self._ending.set_result(Closing(FORBIDDEN, "the credential was revoked, or holds less than before"))

    # What it says.

    async def _serve(self) -> None:
        """Take messages, for as long as nothing ends the connection. Raises Closing, ClientLeft."""
        reading = asyncio.create_task(self._read())
        try:
            await asyncio.wait((reading, self._ending), return_when=asyncio.FIRST_COMPLETED)
            if self._ending.done():
                raise self._ending.result()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            await self._take(await self._next())

    async def _take(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "subscribe":
                self._subscribe(message)
            case "complete":
                task = self._running.get(str(message.get("id")))
                if task is not None:
                    task.cancel()
            case "ping":
                await self._say({"type": "pong"})
            case "pong":
                pass
            case "connection_init":
                raise Closing(TOO_MANY, "connection_init came twice")
            case _:
                raise Closing(BAD, "the message's type is none of graphql-transport-ws")

    async def _next(self) -> Mapping[str, Any]:
        """The next message. Raises Closing for what is none, ClientLeft at the end."""
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            raise ClientLeft
        text = event.get("text")
        if text is None:
            raise Closing(BAD, "messages should be text")
        await self._pace.take(weight_of(text))
        try:
            message = parsed(text.encode(), whole="a message")
        except (Malformed, UnicodeEncodeError) as error:
            raise Closing(BAD, "messages should be JSON") from error
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise Closing(BAD, "messages should be objects with a type")
        return message

    # What goes on.

    def _subscribe(self, message: Mapping[str, Any]) -> None:
        name = message.get("id")
        if not isinstance(name, str) or not 0 < len(name) <= _MAX_ID_CHARS:
            raise Closing(BAD, f"subscribe should have an id, of at most {_MAX_ID_CHARS} characters")
        if name in self._running:
            raise Closing(TAKEN, f"Subscriber for {name} already exists")
        if not isinstance(message.get("payload"), dict):
            raise Closing(BAD, "subscribe should have a payload")
        self._count += 1
        task = asyncio.create_task(self._operate(name, message["payload"], f"{self._http_request_id}-{self._count}"))
        self._running[name] = task
        task.add_done_callback(lambda _: self._forget(name, task))

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._running.get(name) is task:
            del self._running[name]

    async def _operate(self, name: str, payload: Mapping[str, Any], http_request_id: str) -> None:
        """One operation, from its first word to its last. Where the peer is gone, whoever reads from it says so."""
        with contextlib.suppress(ClientLeft):
            await self._answer(name, payload, http_request_id)

    async def _answer(self, name: str, payload: Mapping[str, Any], http_request_id: str) -> None:
        set_origin(current_origin().of_message(http_request_id))  # of this task, which does nothing else
        try:
            if len(self._running) > self._settings.graphql.max_subscriptions:
                raise Refused(
                    f"this connection has {self._settings.graphql.max_subscriptions} operations open; end one",
                    code="too_many_subscriptions",
                    limit="max_subscriptions",
                )
            principal = await self._authenticated()
            with self._open.one(principal):
                await self._stream(name, payload, Context(self._services, principal))
        except (ClientLeft, asyncio.CancelledError):
            raise
        except Unauthenticated:
            self._revoke()
        except Unusable as error:
            await self._say({"id": name, "type": "error", "payload": error.told()})
        except DomainError as error:
            told = [problems.bare(problems.of_request(error))]
            await self._say({"id": name, "type": "error", "payload": told})
        except Exception:
            log.exception("an operation of a socket failed", **current_origin().ids)
            if not self._ending.done():
                self._ending.set_result(Closing(INTERNAL, "this is our mistake"))

    async def _stream(self, name: str, payload: Mapping[str, Any], context: Context) -> None:
        asked = requests.of_members(payload)
        prepared = await self._door.prepare(asked, context)
        async with contextlib.aclosing(self._door.stream(prepared, asked, context)) as results:
            async for one in results:
                if "data" not in one:  # nothing was carried out, or nothing more can be
                    await self._say({"id": name, "type": "error", "payload": one["errors"]})
                    return
                await self._say({"id": name, "type": "next", "payload": one})
        self._running.pop(name, None)  # before it is said: the id is free from then on
        await self._say({"id": name, "type": "complete"})

    async def _say(self, message: Mapping[str, Any]) -> None:
        """Waits for a peer that is slow to read."""
        await self._send({"type": "websocket.send", "text": encode(message).decode()})

    # How it ends.

    async def _end_operations(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self, closing: Closing) -> None:
        await self._end_operations()
        reason = closing.reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": closing.code, "reason": reason})
