"""How long a tenant's events are kept, and how many may follow them."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from amplifier_api_server.control_plane.sections import Duration, Section


class Events(Section):
    retention: Duration = Field(timedelta(days=7), ge=timedelta(minutes=1))
    max_readers: int = Field(100, ge=1)  # of one tenant at once, on all doors
