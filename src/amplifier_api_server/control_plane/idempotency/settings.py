"""How long keys of requests are kept."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from amplifier_api_server.control_plane.sections import Duration, Section


class Idempotency(Section):
    ttl: Duration = Field(timedelta(hours=24), ge=timedelta(minutes=1))  # how long a key and its answer are kept
