"""Numbers of events and of entries of the audit log: in order, and silent about other tenants."""

from itertools import pairwise

import pytest
from sqlalchemy import select
from sqlmodel import col

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import AuditEntry, TenantEvent
from tests.tenants.embedded import embedded

__all__ = ["embedded"]

ME, OTHER = TenantId("ten_me"), TenantId("ten_other")
SECOND, CHANCE = 1000 << 16, 1 << 16


async def event(db, clock, tenant):
    await emit(db, clock, tenant, EventType.KEY_CREATED, {})


async def entry(db, clock, tenant):
    await record(db, clock, "cli", "createKey", tenant_id=tenant)


KINDS = [(event, TenantEvent), (entry, AuditEntry)]


async def written(embedded, add, others):
    """One of ours, and so many of others."""
    async with embedded.database.write() as db:
        for _ in range(others):
            await add(db, embedded.clock, OTHER)
        await add(db, embedded.clock, ME)


async def numbers(embedded, model, tenant=ME):
    async with embedded.database.read() as db:
        found = await db.execute(select(col(model.id)).where(col(model.tenant_id) == tenant).order_by(col(model.id)))
        return list(found.scalars())


@pytest.mark.parametrize(("add", "model"), KINDS)
async def test_what_lies_between_two_numbers_is_time_and_chance_whatever_others_do(embedded, add, model):
    for others in (0, 40, 0, 3):
        embedded.clock.advance(1)
        await written(embedded, add, others)
    found = await numbers(embedded, model)
    assert len(found) == 4
    assert all(abs(after - before - SECOND) < 43 * CHANCE for before, after in pairwise(found))
    assert len(set(await numbers(embedded, model, OTHER))) == 43


@pytest.mark.parametrize(("add", "model"), KINDS)
async def test_numbers_are_in_the_order_of_writing_also_after_the_clock_was_set_back(embedded, add, model):
    for _ in range(3):
        await written(embedded, add, 2)
        before = await numbers(embedded, model)
        embedded.clock.jump(-86400)
        await written(embedded, add, 2)
        assert (await numbers(embedded, model))[: len(before)] == before
