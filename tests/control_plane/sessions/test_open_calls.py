"""What model calls have used so far is kept in the row of their turn, for the start that finds it running."""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import sqlalchemy

from amplifier_api_server.control_plane.model_gateway.turns import CallUsage, MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.sessions.open_calls import OpenCalls, left_of
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId
from amplifier_api_server.tenants.models import Turn, Usage
from amplifier_api_server.tenants.repository import turns, usage
from tests.tenants.embedded import embedded

__all__ = ["embedded"]

AT = datetime(2026, 1, 2, tzinfo=UTC)


def used(call_id: str, completion: int) -> CallUsage:
    return CallUsage(call_id, "m", "p", 10, completion, 10 + completion, estimated=True, finished_at=AT)


@dataclass(eq=False)
class Call:
    so_far: CallUsage | None = None
    ends: list[bool] = field(default_factory=list)

    def used_so_far(self) -> CallUsage | None:
        return self.so_far

    def end(self, *, abort: bool) -> None:
        self.ends.append(abort)

    async def ended(self) -> None: ...


@pytest.fixture
async def row(embedded):
    """A turn's row, running."""
    principal = await embedded.principal()
    await embedded.session(principal, "ses_1")
    values = {"id": "req_1", "session_id": "ses_1", "member_id": "mem_1", "key_id": "key_1", "started_at": AT}
    row = Turn(tenant_id=principal.tenant_id, status="running", tool_calls=[], **values)
    async with embedded.database.write() as db:
        db.add(row)
    return principal.tenant_id, SessionId("ses_1")


async def found(embedded, row):
    async with embedded.database.read() as db:
        return await turns.find(db, *row, TurnId("req_1"))


@pytest.fixture
def metered(row):
    tenant, session = row
    return MeteredTurn(TenantId(tenant), MemberId("mem_1"), session, TurnId("req_1"), RuntimeId("run_1"))


async def test_what_calls_used_and_the_ledger_lacks_is_kept_and_read_again(embedded, row, metered):
    running = RunningTurns(None)
    running.begin(metered)
    call = Call(used("b", 5))
    running.call_used(metered, used("a", 1))
    running.call_began(metered, call)
    kept = OpenCalls(running, embedded.database)
    await kept.write()
    call.so_far = used("b", 7)
    await kept.write()
    assert await left_of(embedded.database, await found(embedded, row)) == [used("a", 1), used("b", 7)]


async def test_a_call_that_the_ledger_has_is_not_charged_again(embedded, row, metered):
    running = RunningTurns(None)
    running.begin(metered)
    running.call_used(metered, used("a", 1))
    running.call_began(metered, Call(used("b", 5)))
    await OpenCalls(running, embedded.database).write()
    tenant, session = row
    written = Usage(
        source="call:a", tenant_id=tenant, member_id="mem_1", session_id=session, turn_id="req_1", model="m",
        day=AT.date(), recorded_at=AT,
    )  # fmt: skip
    async with embedded.database.write() as db:
        await usage.append(db, tenant, [written])
    assert await left_of(embedded.database, await found(embedded, row)) == [used("b", 5)]


async def test_nothing_is_written_while_calls_use_nothing_new(embedded, row, metered, monkeypatch):
    running = RunningTurns(None)
    running.begin(metered)
    running.call_began(metered, Call(used("b", 5)))
    kept = OpenCalls(running, embedded.database)
    await kept.write()

    def no_more(*_):
        raise AssertionError("it was written again")

    monkeypatch.setattr(embedded.database, "write", no_more)
    await kept.write()


async def test_a_turn_that_has_ended_meanwhile_keeps_nothing(embedded, row, metered):
    running = RunningTurns(None)
    running.begin(metered)
    running.call_began(metered, Call(used("b", 5)))
    async with embedded.database.write() as db:
        await turns.finish(db, row[0], TurnId("req_1"), status="failed", finished_at=AT)
    await OpenCalls(running, embedded.database).write()
    assert (await found(embedded, row)).open_calls == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"call_id": "a"}]', "{}"])
async def test_a_spoiled_record_charges_nothing_and_fails_nothing(embedded, row, text):
    async with embedded.database.write() as db:
        await db.execute(sqlalchemy.text("update turn set open_calls = :text"), {"text": text})
    assert await left_of(embedded.database, await found(embedded, row)) == []
