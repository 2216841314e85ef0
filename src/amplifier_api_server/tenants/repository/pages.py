"""Which part of a list is read: the one way in which every list is cut into pages, in both directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, tuple_

Query = TypeVar("Query", bound=Select[Any])


@dataclass(frozen=True, slots=True)
class Page:
    """At most `limit` rows that come after the one at the place `after`; without it, from the list's beginning."""

    limit: int | None = None
    after: tuple[Any, ...] | None = None
    descending: bool = True

    def first(self, limit: int) -> Page:
        """Its first `limit` rows."""
        return Page(limit, self.after, self.descending)

    def cut(self, query: Query, *place: Any) -> Query:
        """This part of `query`, whose rows are in the order of the columns of their `place`."""
        if self.after is not None:
            here = tuple_(*place)
            query = query.where(here < self.after if self.descending else here > self.after)
        query = query.order_by(*(one.desc() if self.descending else one for one in place))
        return query.limit(self.limit)


IN_ORDER = Page(descending=False)  # all of it, the oldest or the first name first
