"""However many sessions are shown, what is in them is read by as many statements as for one."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event
from sqlmodel import insert

from amplifier_api_server.tenants.models import Message, Session, Turn

QUERY = """{
  sessions {
    id
    messages { role text }
    messagesConnection(first: 2) { nodes { seq } pageInfo { hasNextPage } }
    executions(first: 1) { nodes { requestId usage { totalTokens } } pageInfo { hasNextPage } }
  }
}"""


@contextmanager
def statements(database, tenant_id):
    """Those that ask for something of the tenant's."""
    seen = []

    def note(_connection, _cursor, statement, parameters, *_):
        if tenant_id in parameters:
            seen.append(statement)

    engines = [one.sync_engine for one in (database._read_engine, database._write_engine)]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def filled(door, count):
    """`count` sessions of the tenant, each with three messages and two executions."""
    services = door.plane.app.services
    me = (await door.ask("{ me { tenant { id } member { id } } }"))["me"]
    tenant, member = me["tenant"]["id"], me["member"]["id"]
    now = services.clock.now()
    same = {"tenant_id": tenant, "member_id": member, "key_id": "key_x"}
    sessions = [
        same
        | {
            "id": f"sess_{number}",
            "profile": "foundation:base",
            "context": {},
            "collections": [],
            "state": {},
            "status": "suspended",
            "created_at": now,
            "last_active_at": now,
        }
        for number in range(count)
    ]
    turns = [
        same
        | {
            "id": f"req_{one['id']}n{number}",
            "session_id": one["id"],
            "status": "completed",
            "tool_calls": [],
            "started_at": now,
        }
        for one in sessions
        for number in range(2)
    ]
    messages = [
        {
            "session_id": one["id"],
            "seq": number,
            "tenant_id": tenant,
            "turn_id": f"req_{one['id']}n0",
            "role": "user",
            "body": {"role": "user", "content": f"{one['id']} says {number}"},
            "created_at": now,
        }
        for one in sessions
        for number in range(3)
    ]
    async with services.database.write() as db:
        for table, rows in ((Session, sessions), (Turn, turns), (Message, messages)):
            await db.execute(insert(table), rows)
    return tenant


@pytest.mark.parametrize("count", [1, 50])
async def test_the_number_of_statements_is_the_same(door, count):
    tenant = await filled(door, count)
    with statements(door.plane.app.services.database, tenant) as seen:
        said = await door.ask(QUERY)
    assert len(said["sessions"]) == count
    assert len(seen) == 7, "the sessions; and for each field within them its size and its rows"
    for one in said["sessions"]:
        assert [message["text"] for message in one["messages"]] == [f"{one['id']} says {n}" for n in range(3)]
        assert [message["seq"] for message in one["messagesConnection"]["nodes"]] == [0, 1]
        assert one["messagesConnection"]["pageInfo"]["hasNextPage"] is True
        assert [run["requestId"] for run in one["executions"]["nodes"]] == [f"req_{one['id']}n1"]
        assert one["executions"]["pageInfo"]["hasNextPage"] is True


async def test_of_a_long_transcript_the_newest_messages_are_shown(door, monkeypatch):
    monkeypatch.setattr("amplifier_api_server.control_plane.graphql.types.NEWEST_MESSAGES", 2)
    await filled(door, 1)
    said = await door.ask("{ sessions { messages { seq } } }")
    assert [one["seq"] for one in said["sessions"][0]["messages"]] == [1, 2]
