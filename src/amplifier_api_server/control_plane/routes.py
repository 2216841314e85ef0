"""The table of routes: method, path, and the operation that they ask for.

Owns matching. A path that is in no row does not exist, whoever asks.
Invariant (a test holds it): every route that the application serves is here, and the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from amplifier_api_server.control_plane.operations import Operation
from amplifier_api_server.tenants.errors import Malformed

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

_SEGMENT = re.compile(r"[A-Za-z0-9._:~@-]{1,160}")  # what an id or a name can be made of; anything else can't exist

_MAX_NAME_CHARS = 100
_MAX_TOLD = 10  # of the parameters that are not known
_ANY = "/"  # a parameter's place in the tree: nothing that a segment of a path can be


class ClientLeft(Exception):
    """The caller hung up before its answer began: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Route:
    """One row."""

    method: str
    template: str
    operation: Operation
    max_body: str = "max_body"  # the name of the setting in `api`
    takes: tuple[str, ...] = ()  # the media types of a body; none: a body means nothing here, and is not looked at
    handler: Handler | None = None  # plain ASGI, past the framework: the hot ones
    docs: Mapping[str, Any] = field(default_factory=dict, hash=False)  # an OpenAPI operation, of a hot one
    # What its query may hold; None, as of what browsers and identity providers open, is anything.
    parameters: frozenset[str] | None = None

    @property
    def permission(self) -> str | None:
        """None: no authentication."""
        return self.operation.permission


@dataclass(frozen=True, slots=True)
class Match:
    route: Route
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """What the path takes, for `Allow` (RFC 9110, 10.2.1)."""

    allowed: tuple[str, ...]


class RouteTable:
    """Rows, by their paths' segments."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._root: dict[str, Any] = {}
        self._parameters: dict[tuple[str, str], frozenset[str]] = {}
        for route in self.routes:
            node = self._root
            for segment in _segments(route.template):
                node = node.setdefault(_ANY if segment.startswith("{") else segment, {})
            methods = node.setdefault("", {})
            if route.method in methods:
                raise ValueError(f"two rows for {route.method} {route.template}")
            names = tuple(one[1:-1] for one in _segments(route.template) if one.startswith("{"))
            methods[route.method] = route, names

    def demand_known(self, route: Route, query: bytes) -> None:
        """Raises Malformed for a parameter of a query that the route does not have."""
        known = self._parameters.get((route.method, route.template), route.parameters)
        if not query or known is None:
            return
        given = dict.fromkeys(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        unknown = [name for name in given if name not in known]
        if unknown:
            there_is = f"there are {', '.join(sorted(known))}" if known else "there are none here"
            message = f"is no parameter of this request; {there_is}"
            found = [{"field": name[:_MAX_NAME_CHARS], "message": message} for name in unknown[:_MAX_TOLD]]
            raise Malformed(f"{found[0]['field']} {message}", errors=found)

    def learn(self, method: str, template: str, parameters: Iterable[str]) -> None:
        """What the query of a route of the framework may hold."""
        self._parameters[method, template] = frozenset(parameters)

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of all rows together."""
        return _with_implied({route.method for route in self.routes})

    def match(self, method: str, path: str) -> Match | WrongMethod | None:
        """The row for a path as it came (still percent-encoded), or which methods it has, or None."""
        node, values = self._root, []
        for segment in _segments(path):
            following = node.get(segment) if segment else None
            if following is None:
                following = node.get(_ANY)
                value = unquote(segment) if "%" in segment else segment  # a profile's colon may come as %3A
                if following is None or not _SEGMENT.fullmatch(value):
                    return None
                values.append(value)
            node = following
        methods = node.get("")
        if methods is None:
            return None
        found = methods.get(method)
        if found is None:
            return WrongMethod(_with_implied(methods))
        route, names = found
        return Match(route, dict(zip(names, values, strict=True)))


def _with_implied(methods: Iterable[str]) -> tuple[str, ...]:
    """HEAD is GET's, and every path has OPTIONS."""
    return tuple(sorted({*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))


def _segments(path: str) -> list[str]:
    return path.strip("/").split("/") if path != "/" else []
