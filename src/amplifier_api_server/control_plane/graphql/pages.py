"""Pages, as Relay's connections (GraphQL Cursor Connections Specification): forwards, by `first` and `after`.

A cursor is the same text as REST's `next_cursor` for the same place in the same list, so a reader can change doors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Generic, TypeVar

import strawberry

from amplifier_api_server.control_plane.graphql.context import Info
from amplifier_api_server.control_plane.pages import Asked, Place, shown
from amplifier_api_server.tenants.errors import Invalid

Node = TypeVar("Node")
Row = TypeVar("Row")
MAX_CURSOR_CHARS = 512


@strawberry.type(description="Where a page stands in its list.")
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type
class Edge(Generic[Node]):
    cursor: str
    node: Node


@strawberry.type(description="One page of a list.")
class Connection(Generic[Node]):
    edges: list[Edge[Node]]
    nodes: list[Node]
    page_info: PageInfo


def many(kind: Any) -> Any:
    """A list of a type that was made at run time."""
    return list[kind]


def pages_of(kind: Any) -> Any:
    """A connection of one."""
    return Connection[kind]


@strawberry.enum(
    name="Order", description="Of a list: newest first, or oldest first; by name, from its end or its beginning."
)
class Order(Enum):
    ASC = "asc"
    DESC = "desc"


def asked(info: Info, first: int | None, after: str | None, order: Order | None, *, newest_first: bool = True) -> Asked:
    """Which page these arguments ask for. Raises Invalid."""
    if first is not None and first < 1:
        raise Invalid(
            f"first is {first}; it should be at least 1", errors=[{"field": "first", "message": "at least 1"}]
        )
    if after is not None and len(after) > MAX_CURSOR_CHARS:
        message = "should be a cursor of an earlier page"
        raise Invalid(f"after {message}", code="invalid_cursor", errors=[{"field": "after", "message": message}])
    size = info.context.settings.api.page_limit(first)
    return Asked(size, after, newest_first if order is None else order is Order.DESC)


def page(found: Sequence[Row], wanted: Asked, place: Place, view: Callable[[Row], Any]) -> Connection[Any]:
    """The page that was asked for, out of `found`, which holds one more where there is one."""
    edges: list[Edge[Any]] = shown(found[: wanted.size], lambda one: Edge(cursor=place.cursor_of(one), node=view(one)))
    return Connection(
        edges=edges,
        nodes=[one.node for one in edges],
        page_info=PageInfo(
            has_next_page=len(found) > wanted.size,
            has_previous_page=bool(wanted.cursor),
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        ),
    )
