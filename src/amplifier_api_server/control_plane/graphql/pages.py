"""Pages, as Relay's connections (GraphQL Cursor Connections Specification): forwards, by `first` and `after`.

A cursor is the same text as REST's `next_cursor` for the same place in the same list, so a reader can change doors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import strawberry

from amplifier_api_server.control_plane.pages import shown
from amplifier_api_server.control_plane.settings import Settings
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


def page_size(settings: Settings, first: int | None) -> int:
    """How many are on a page. Raises Invalid."""
    if first is not None and first < 1:
        raise Invalid(
            f"first is {first}; it should be at least 1", errors=[{"field": "first", "message": "at least 1"}]
        )
    return settings.api.page_limit(first)


def bounded(cursor: str | None) -> str | None:
    """A cursor that is short enough to be looked at. Raises Invalid (`invalid_cursor`)."""
    if cursor is not None and len(cursor) > MAX_CURSOR_CHARS:
        raise Invalid(
            "after should be a cursor of an earlier page",
            code="invalid_cursor",
            errors=[{"field": "after", "message": "should be a cursor of an earlier page"}],
        )
    return cursor


def page(
    found: Sequence[Row], size: int, *, cursor_of: Callable[[Row], str], view: Callable[[Row], Any], after: str | None
) -> Connection[Any]:
    """The page of `size` out of `found`, which holds one more where there is one."""
    edges: list[Edge[Any]] = shown(found[:size], lambda one: Edge(cursor=cursor_of(one), node=view(one)))
    return Connection(
        edges=edges,
        nodes=[one.node for one in edges],
        page_info=PageInfo(
            has_next_page=len(found) > size,
            has_previous_page=after is not None,
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        ),
    )
