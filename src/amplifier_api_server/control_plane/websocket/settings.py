"""What one socket may take: how large its messages are, how fast, how many at once, and how long it may be silent."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from amplifier_api_server.control_plane.sections import Duration, Section, Size


class Websocket(Section):
    """Of every socket, at /ws and at /graphql; `max_streams` and what follows it are of /ws alone."""

    max_message: Size = Field(2 * 1024 * 1024, ge=32 * 1024)
    ping_interval: Duration = Field(timedelta(seconds=20), ge=timedelta(seconds=1))
    ping_timeout: Duration = Field(timedelta(seconds=20), ge=timedelta(seconds=1))
    unread_timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(seconds=1))  # with what it was sent unread
    auth_timeout: Duration = Field(
        timedelta(seconds=10), ge=timedelta(seconds=1)
    )  # from the upgrade to the first message
    max_streams: int = Field(100, ge=1)  # executions and events followed at once on one connection
    max_requests: int = Field(32, ge=1)  # messages in work at once on one connection
    messages_per_second: int = Field(100, ge=1)  # beyond it a connection's messages are read no faster
