"""What the events' endpoint takes and gives: ids of events, and their JSON."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AwareDatetime, Field

from amplifier_api_server.control_plane.schemas import Answer
from amplifier_api_server.control_plane.tenant_events.recording import EventType
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.models import TenantEvent

_ID = re.compile(r"evt_(\d{1,18})")


class TenantEventView(Answer):
    """One event, the same on every door. `docs/events.md` says what is in `data`."""

    id: Annotated[str, Field(description="what a reader goes on after")]
    type: EventType
    created_at: AwareDatetime
    data: dict[str, Any]

    @classmethod
    def of(cls, row: TenantEvent) -> TenantEventView:
        return cls(id=event_id(row.id or 0), type=EventType(row.type), created_at=row.created_at, data=row.data)


def event_id(number: int) -> str:
    return f"evt_{number}"


def number_of(identifier: str, field: str) -> int:
    """The number in an event's id. Raises Invalid (`invalid_event_id`)."""
    found = _ID.fullmatch(identifier)
    if found is None:
        message = "should be the id of an event that was read, evt_..."
        raise Invalid(f"{field} {message}", code="invalid_event_id", errors=[{"field": field, "message": message}])
    return int(found[1])


def types_of(text: str | None) -> frozenset[EventType] | None:
    """The types in a list with commas; None for all. Raises Invalid."""
    if not text:
        return None
    try:
        return frozenset(EventType(one.strip()) for one in text.split(","))
    except ValueError as error:
        message = f"should be of {', '.join(EventType)}, with commas between them"
        raise Invalid(f"types {message}", errors=[{"field": "types", "message": message}]) from error
