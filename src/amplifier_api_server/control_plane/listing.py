"""The parameters that every list takes, as dependencies of FastAPI."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query

from amplifier_api_server.control_plane.pages import Asked
from amplifier_api_server.control_plane.services import Services, services

Limit = Annotated[int | None, Query(ge=1, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=512, description="the `next_cursor` of the page before")]
Order = Literal["asc", "desc"]


def _newest_first(
    uses: Annotated[Services, Depends(services)],
    limit: Limit = None,
    cursor: Cursor = None,
    order: Annotated[Order, Query(description="`desc`: the newest first")] = "desc",
) -> Asked:
    return Asked(uses.settings.api.page_limit(limit), cursor, order == "desc")


def _oldest_first(
    uses: Annotated[Services, Depends(services)],
    limit: Limit = None,
    cursor: Cursor = None,
    order: Annotated[Order, Query(description="`asc`: the oldest first, or by name")] = "asc",
) -> Asked:
    return Asked(uses.settings.api.page_limit(limit), cursor, order == "desc")


NewestFirst = Annotated[Asked, Depends(_newest_first)]
OldestFirst = Annotated[Asked, Depends(_oldest_first)]
