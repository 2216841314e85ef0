"""Operations, asked for by name: the very handlers that REST has, so that the answer is REST's, byte by byte.

Owns making a request of a message's members. Refuses to know what any operation does. Invariants: the handler that runs is
the one of the operation that the caller was let in for, whatever the parameters are; it runs to its end, whoever goes away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import orjson

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.edge import Call, Keyed
from amplifier_api_server.control_plane.gate import AdmitsRequests, Gate
from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.control_plane.routes import Handler, Match, Receive, Route, RouteTable
from amplifier_api_server.control_plane.sessions.copies import MAX_WHOLE_BYTES
from amplifier_api_server.control_plane.websocket.table import CALLABLE
from amplifier_api_server.tenants.errors import (
    Forbidden,
    Malformed,
    NotFound,
    Refused,
    TooLarge,
    Unauthenticated,
)

_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # twice what any operation answers
_HIDDEN: Final = (Unauthenticated, Forbidden, Refused)  # who was refused these is not charged besides


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    operation: str
    params: Mapping[str, Any]  # of its path and its query
    body: Any = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    body: bytes  # JSON, or nothing


class Calls:
    """One a process."""

    def __init__(self, *, inner: Handler, routes: RouteTable, admission: AdmitsRequests, keyed: Keyed | None) -> None:
        self._inner = inner
        self._table = routes
        self._routes = {one.operation.name: one for one in routes.routes}
        self._gate = Gate(admission)
        self._keyed = keyed

    async def enter(self, principal: Principal, operation: str) -> None:
        """Let the caller begin an operation that is carried out elsewhere. Raises Forbidden, Refused."""
        await self._gate.enter(principal, OPERATIONS[operation])

    async def ask(self, principal: Principal, asked: Asked) -> Answered:
        """Let the caller in, carry the operation out and give its answer. Raises DomainError."""
        operation = OPERATIONS[asked.operation]
        route = self._routes.get(operation.name)
        if route is None:
            raise NotFound(f"this server does not have {operation.name}", code="no_such_operation")
        scope, call = self._request(principal, route, asked)
        call.standings = await self._gate.enter(principal, operation)
        self._table.demand_known(route, scope["query_string"])
        answer = _Collected(MAX_WHOLE_BYTES if operation.name == "exportSession" else _MAX_ANSWER_BYTES)
        handler = route.handler or self._inner
        receive = _sending(scope.pop("body"))
        if asked.key is not None and operation.takes_key and self._keyed is not None:
            await self._keyed(handler, scope, receive, answer.send)
        else:
            await handler(scope, receive, answer.send)
        return answer.whole()

    def _request(self, principal: Principal, route: Route, asked: Asked) -> tuple[dict[str, Any], Call]:
        params = dict(asked.params)
        path = "/".join(
            quote(_segment(params, part[1:-1]), safe=":@~") if part.startswith("{") else part
            for part in route.template.split("/")
        )
        match = self._table.match(route.method, path)
        if not isinstance(match, Match) or match.route is not route:  # a name that is another path, or none
            raise NotFound(
                f"there is nothing that {', '.join(_named(route, asked.params))} could be the name of",
                code="no_such_path",
            )
        headers = [(b"accept", b"application/json")]
        body = b""
        if asked.body is not None:
            body = orjson.dumps(asked.body)
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if asked.key is not None:
            headers.append((b"idempotency-key", asked.key.encode("utf-8")))
        origin = current_origin()
        call = Call(match, principal)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": route.method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("ascii"),
            "query_string": _query(params),
            "root_path": "",
            "headers": headers,
            "client": (origin.address, 0),
            "server": None,
            "state": {"call": call, "principal": principal},
            "body": body,
        }
        return scope, call


def _segment(params: dict[str, Any], name: str) -> str:
    value = params.pop(name, None)
    if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
        raise _wrong(f"params.{name}", "should be there: it is a part of the operation's path")
    return str(value)


def _named(route: Route, params: Mapping[str, Any]) -> list[str]:
    return [f"{name} {params[name]!r}"[:100] for name in params if f"{{{name}}}" in route.template]


def _query(params: Mapping[str, Any]) -> bytes:
    pairs: list[tuple[str, str]] = []
    for name, value in params.items():
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if not isinstance(one, str | int | float):
                raise _wrong(f"params.{name}", "should be a string, a number, true, false, or a list of them")
            pairs.append((name, str(one).lower() if isinstance(one, bool) else str(one)))
    return urlencode(pairs).encode("ascii")


def _wrong(field: str, message: str) -> Malformed:
    return Malformed(f"{field}: {message}", errors=[{"field": field, "message": message}])


def _sending(body: bytes) -> Receive:
    """A request's body, whole; then nothing: whoever asked is not told to have left."""
    left = [body]

    async def receive() -> Any:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await asyncio.get_running_loop().create_future()

    return receive


class _Collected:
    """An answer, as it comes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._status = 0
        self._parts: list[bytes] = []
        self._bytes = 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            return
        part = message.get("body", b"")
        self._bytes += len(part)
        if self._bytes > self._most_bytes:
            raise TooLarge(
                f"the answer has more than {self._most_bytes} bytes, too many for a message; ask for it by REST",
                code="answer_too_large",
                limit_bytes=self._most_bytes,
            )
        self._parts.append(part)

    def whole(self) -> Answered:
        if not self._status:
            raise RuntimeError("it answered nothing")
        return Answered(self._status, b"".join(self._parts))


def check_callable(operation: str) -> None:
    """Raises NotFound for an operation that `call` can't ask for."""
    if operation not in CALLABLE:
        known = operation in OPERATIONS
        detail = f"{operation} has a message of its own, or is of REST alone" if known else None
        unknown = f"there is no operation {operation!r}; its name is the operationId in /openapi.json"
        raise NotFound(detail or unknown, code="no_such_operation")
