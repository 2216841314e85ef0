"""Telling a tenant's followers. Every service that makes something happen calls `emit` in the transaction that makes it.

Invariant: what was committed is told, once and in the order of the commits; what was rolled back never is. `data` holds ids,
names and states: no prompt, no answer, no secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import TOLD
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.repository import tenant_events


class EventType(StrEnum):
    """Every event there is; docs/events.md says what is in its `data`."""

    SESSION_CREATED = "session.created"
    SESSION_UPDATED = "session.updated"
    SESSION_CLOSED = "session.closed"
    SESSION_FAILED = "session.failed"
    EXECUTION_STARTED = "execution.started"
    EXECUTION_COMPLETED = "execution.completed"
    EXECUTION_FAILED = "execution.failed"
    EXECUTION_CANCELLED = "execution.cancelled"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_ANSWERED = "approval.answered"
    COLLECTION_INSTALLED = "collection.installed"
    COLLECTION_FAILED = "collection.failed"
    COLLECTION_REMOVED = "collection.removed"
    PROFILE_WRITTEN = "profile.written"
    PROFILE_REMOVED = "profile.removed"
    KEY_CREATED = "key.created"
    KEY_REVOKED = "key.revoked"
    MEMBER_ADDED = "member.added"
    MEMBER_UPDATED = "member.updated"
    MEMBER_REMOVED = "member.removed"
    TENANT_UPDATED = "tenant.updated"


async def emit(db: AsyncSession, clock: Clock, tenant_id: TenantId, kind: EventType, data: Mapping[str, Any]) -> None:
    """Add one event to the transaction that the caller commits; `Database.write` wakes followers after the commit."""
    await tenant_events.add(db, tenant_id, kind.value, data, clock.now())
    db.info.setdefault(TOLD, set()).add(tenant_id)
