"""The edge: what every request passes, whatever it wants. Authentication, permission, admission, bounds, one answer.

Plain ASGI around everything. Owns the order of things and the shape of refusals; knows no domain. Invariants: nothing behind
it runs without a principal that has the route's permission (unless the route is open to everybody); every answer has an
`X-Request-Id`; every failure is a problem with a code; no exception leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, time
from typing import Any, Protocol

import structlog
from starlette.requests import ClientDisconnect

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.body_room import BodyRoom, HeldBody
from amplifier_api_server.control_plane.body_types import demand_taken
from amplifier_api_server.control_plane.client_addresses import TrustedProxies
from amplifier_api_server.control_plane.errors import (
    NO_SUCH_PATH,
    PROBLEM_TYPE,
    MethodNotAllowed,
    NotJson,
    UpgradeRequired,
    encode,
    headers_of,
    our_mistake,
    problem,
    problem_of,
    status_of,
)
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.gate import AdmitsRequests, Gate
from amplifier_api_server.control_plane.json_bounds import (
    LIGHT_BYTES,
    REQUEST_VALUES,
    UnboundedJSON,
    demand_few,
    work_seconds,
)
from amplifier_api_server.control_plane.limits import headers as limit_headers
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.logins import csrf
from amplifier_api_server.control_plane.operations import Operation
from amplifier_api_server.control_plane.origin import Door, Origin, origin_of, reset_origin, set_origin
from amplifier_api_server.control_plane.routes import (
    ClientLeft,
    Handler,
    Match,
    Receive,
    Route,
    RouteTable,
    Scope,
    Send,
    WrongMethod,
)
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Access, Telemetry
from amplifier_api_server.tenants.errors import DomainError, Malformed, NotFound, Refused, TooLarge
from amplifier_api_server.tenants.ids import SessionId, TurnId

log = structlog.get_logger(__name__)

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
]
_OPTIONS = Operation("options", None)
_DRAIN_BYTES = 64 * 1024 * 1024
_DRAIN_SECONDS = 3.0
_CLIENT_CLOSED = 499  # nginx's number for a client that left before its answer; only in logs and metrics


@dataclass(slots=True)
class Call:
    """One request, as the services behind the edge see it: `scope["state"]["call"]`."""

    match: Match
    principal: Principal | None = None
    standings: tuple[Standing, ...] = field(default=())  # of limits taken for it: they become headers
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # more of the answer's
    session_id: SessionId | None = None  # what an execution is to be begun with, where that is kept already
    turn_id: TurnId | None = None

    @property
    def caller(self) -> Principal:
        assert self.principal is not None, "an open route has no caller"
        return self.principal


class Authenticates(Protocol):
    async def authenticate(self, headers: list[tuple[bytes, bytes]]) -> Principal: ...


class Keyed(Protocol):
    """Stands before a handler whose operation takes an Idempotency-Key."""

    async def __call__(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None: ...


class Edge:
    """The application that the server runs."""

    def __init__(
        self,
        inner: Any,
        *,
        routes: RouteTable,
        settings: Settings,
        authenticator: Authenticates,
        admission: AdmitsRequests,
        telemetry: Telemetry,
        queue: FairQueue,
        sockets: Mapping[str, Handler] | None = None,  # WebSocket doors, by path; each authenticates by itself
        keyed: Keyed | None = None,
    ) -> None:
        self._inner = inner
        self._routes = routes
        self._settings = settings
        self._proxies = TrustedProxies(settings.server.trusted_proxies)
        self._authenticator = authenticator
        self._gate = Gate(admission)
        self._room = BodyRoom(max(settings.api.max_body, settings.api.max_collection, settings.api.max_import))
        self._sockets = sockets or {}
        self._keyed = keyed
        self._telemetry = telemetry
        self._queue = queue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "http":
            # HEAD is GET without its body (RFC 9110, 9.3.2), which the server leaves out by what it read itself.
            asked = scope if scope["method"] != "HEAD" else {**scope, "method": "GET"}
            await self._http(asked, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket: its door answers for everything that comes by it."""
        origin = self._origin_of(scope, "websocket" if scope["path"] == "/ws" else "graphql")
        door = self._sockets.get(scope["path"])
        if door is None:
            await _no_such_socket(receive, send, origin.http_request_id)
            return
        scope.setdefault("state", {})["http_request_id"] = origin.http_request_id
        token = set_origin(origin)
        try:
            await door(scope, receive, _telling_who_left(send))
        except ClientLeft:
            pass
        except Exception:
            log.exception("a socket failed", **origin.ids, path=scope["path"])
            with contextlib.suppress(Exception):
                await send({"type": "websocket.close", "code": 1011, "reason": "this is our mistake"})
        finally:
            reset_origin(token)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = perf_counter()
        origin = self._origin_of(scope, "graphql" if scope["path"] == "/graphql" else "rest")
        answer = _Answer(send, origin.http_request_id)
        route = "unmatched"
        token = set_origin(origin)
        held: HeldBody | None = None
        answer.access = access = Access(scope["method"], _raw_path(scope).decode("latin-1"), origin.address)
        try:
            match = self._match(scope)
            route = match.route.template
            answer.call = call = Call(match)
            await self._let_in(scope, call)
            self._routes.demand_known(match.route, scope.get("query_string", b""))
            handler = match.route.handler or self._inner
            if self._keyed is not None and match.route.operation.takes_key:
                handler = partial(self._keyed, handler)
            whose = call.principal.tenant_id if call.principal else origin.network
            answer.held = held = self._enter_body(scope, call, origin)
            bounded = receive if held is None else self._bounded(scope, receive, match, held, whose)
            if scope["method"] == "GET" and bounded is not receive:
                await _drain(bounded)  # it means nothing (RFC 9110, 9.3.1); left unread, it resets the connection
            await handler(scope, bounded, answer.send)
            if not answer.started:
                raise RuntimeError(f"{route} answered nothing")
        except DomainError as error:
            if isinstance(error, TooLarge):
                await _drain(receive)
            await self._refuse(answer, error)
        except (ClientLeft, ClientDisconnect):
            answer.status = _CLIENT_CLOSED
        except asyncio.CancelledError:
            answer.status = answer.status or _CLIENT_CLOSED
            raise
        except Exception as error:
            log.exception("a request failed", **origin.ids, route=route)
            self._telemetry.api_error(error="internal", status=500, kind=type(error).__name__)
            access.code = "internal"
            await answer.problem(500, problem(500, "internal", our_mistake()), [])
        finally:
            if held is not None:
                held.release()
            if answer.call is not None and answer.call.principal is not None:
                access.known(answer.call.principal)
            self._telemetry.api_response(
                access,
                method=scope["method"] if route != "unmatched" else "other",
                route=route,
                status=answer.status or _CLIENT_CLOSED,
                seconds=perf_counter() - begun,
            )
            reset_origin(token)

    def _match(self, scope: Scope) -> Match:
        if scope["path"] == "*" and scope["method"] == "OPTIONS":  # of the server as a whole (RFC 9110, 9.3.7)
            return Match(_options(self._routes.methods), {})
        found = self._find(scope)
        if isinstance(found, WrongMethod):
            if scope["method"] == "OPTIONS":
                return Match(_options(found.allowed), {})
            raise MethodNotAllowed(f"this path takes {', '.join(found.allowed)}", found.allowed)
        return found

    def _find(self, scope: Scope) -> Match | WrongMethod:
        path = _raw_path(scope)
        if len(path) > self._settings.api.max_path_chars:
            raise NotFound(
                f"the path is longer than {self._settings.api.max_path_chars} characters", code="path_too_long"
            )
        found = self._routes.match(scope["method"], path.decode("latin-1"))
        if found is None:
            if scope["path"] not in self._sockets:
                raise NotFound(NO_SUCH_PATH, code="no_such_path")
            if scope["method"] != "OPTIONS":
                raise UpgradeRequired
            return WrongMethod(("GET", "OPTIONS"))
        return found

    async def _let_in(self, scope: Scope, call: Call) -> None:
        route = call.match.route
        state = scope.setdefault("state", {})
        state["call"] = call
        if route.permission is None:
            return
        principal = await self._authenticator.authenticate(scope["headers"])
        if principal.method == "login":
            csrf.require(self._settings, scope["method"], scope["headers"])
        call.principal = state["principal"] = principal
        self._telemetry.api_request(method=scope["method"], path=scope["path"], user_id=principal.member_id)
        call.standings = await self._gate.enter(principal, route.operation)

    def _enter_body(self, scope: Scope, call: Call, origin: Origin) -> HeldBody | None:
        """Room for the request's body; None where it has none. Raises UnsupportedMediaType, Unavailable."""
        if not _has_body(scope):
            return None
        if call.match.route.takes:
            demand_taken(scope["headers"], call.match.route.takes)
        known = call.principal
        return self._room.enter(known.tenant_id) if known else self._room.enter_unknown(origin.network)

    def _bounded(self, scope: Scope, receive: Receive, match: Match, held: HeldBody, whose: str) -> Receive:
        """`receive`, that refuses a body that is over its limit, has no room, or does not arrive in time."""
        limit: int = getattr(self._settings.api, match.route.max_body)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                if int(value) > limit:
                    raise TooLarge(f"the body has {int(value)} bytes; at most {limit} are taken", limit_bytes=limit)
                held.hold(int(value))
        seen, is_whole = 0, False
        parts: list[bytes] | None = [] if match.route.max_body == "max_body" else None
        deadline = asyncio.get_running_loop().time() + self._settings.api.body_timeout.total_seconds()

        async def bounded() -> Any:
            nonlocal seen, is_whole
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise Malformed("the body did not arrive in time", code="body_timeout") from error
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
                if seen > limit:
                    raise TooLarge(f"the body is longer than {limit} bytes", limit_bytes=limit)
                held.hold(seen)
                if parts is not None:
                    parts.append(message.get("body", b""))
                    if is_whole:
                        whole = b"".join(parts)
                        parts.clear()
                        _demand_few_values(whole)
                        if len(whole) > LIGHT_BYTES:
                            await self._queue.admit(whose, work_seconds(whole))
            return message

        return bounded

    async def _refuse(self, answer: _Answer, error: DomainError) -> None:
        status = status_of(error)
        if isinstance(error, Refused) and answer.call is not None and answer.call.principal is not None:
            self._telemetry.limit_exceeded(
                user_id=answer.call.principal.member_id, limit=str(error.extra.get("limit", error.stable_code))
            )
        self._telemetry.api_error(error=error.stable_code, status=status)
        if answer.access is not None:
            answer.access.code = error.stable_code
        if error.standings and answer.call is not None:
            answer.call.standings = error.standings
        await answer.problem(status, problem_of(error), headers_of(error))

    def _origin_of(self, scope: Scope, door: Door) -> Origin:
        """Where a request came from: what the connection and trusted proxies say, and what the client calls itself."""
        peer = scope.get("client")
        return origin_of(door, self._proxies.client_of(peer[0] if peer else "", scope["headers"]), scope["headers"])


def _options(methods: tuple[str, ...]) -> Route:
    """What answers an OPTIONS: the methods that are taken. Nobody has to be known for it."""

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        headers = [(b"allow", ", ".join(methods).encode("ascii"))]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    return Route("OPTIONS", "OPTIONS", _OPTIONS, handler=answer)


def _raw_path(scope: Scope) -> bytes:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return raw


def _has_body(scope: Scope) -> bool:
    """With neither header there is none (RFC 9112, 6.3)."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _demand_few_values(body: bytes) -> None:
    """What is wrong with each value of a body may have to be told. Raises Malformed for very many, before it is parsed."""
    try:
        demand_few(body, max_values=REQUEST_VALUES)
    except UnboundedJSON as error:
        raise NotJson(f"the body can't be read: {error}") from error


async def whole_body(receive: Receive) -> bytes:
    """The whole body, which the edge has bounded. Raises Malformed (`body_cut`)."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Malformed("the body ended too early", code="body_cut")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _drain(receive: Receive) -> None:
    """Read on, for a while, what is too large: a client that is still sending when the connection closes never sees why."""
    seen = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while seen < _DRAIN_BYTES:
                message = await receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _telling_who_left(send: Send) -> Send:
    """`send`, that raises ClientLeft once the other end is gone (ASGI: OSError)."""

    async def telling(message: Any) -> None:
        try:
            await send(message)
        except OSError as error:
            raise ClientLeft from error

    return telling


async def _no_such_socket(receive: Receive, send: Send, http_request_id: str) -> None:
    """Refuse the upgrade as any request is refused (ASGI's WebSocket denial response)."""
    await receive()
    raw = encode(problem(404, "no_such_path", NO_SUCH_PATH))
    headers = [(b"content-type", PROBLEM_TYPE.encode()), (b"x-request-id", http_request_id.encode())]
    await send({"type": "websocket.http.response.start", "status": 404, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": raw})


class _Answer:
    """The way out: adds what every answer has, and remembers whether and how it began."""

    def __init__(self, send: Send, http_request_id: str) -> None:
        self._send = send
        self._http_request_id = http_request_id
        self.call: Call | None = None
        self.access: Access | None = None
        self.held: HeldBody | None = None  # the request's body
        self.status = 0
        self.started = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            if self.held is not None:
                self.held.answered()
            headers = list(message.get("headers", ()))
            names = {name for name, _ in headers}
            headers.append((b"x-request-id", self._http_request_id.encode()))
            headers.extend(one for one in _HEADERS if one[0] not in names)
            if self.call is not None:
                headers.extend(self.call.headers)
                headers.extend(limit_headers.of(self.call.standings, time()))
            message["headers"] = headers
        await self._send(message)

    async def problem(self, status: int, body: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> None:
        """A problem, unless an answer has begun: then all that is left is to end it where it stands."""
        if self.started:
            raise ConnectionAbortedError("the request failed after its answer had begun")
        raw = encode(body)
        start = [(b"content-type", PROBLEM_TYPE.encode()), (b"content-length", str(len(raw)).encode()), *headers]
        await self.send({"type": "http.response.start", "status": status, "headers": start})
        await self.send({"type": "http.response.body", "body": raw})
