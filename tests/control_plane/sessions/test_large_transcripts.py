"""A transcript of many megabytes is answered in pieces and pages, so that nobody who doesn't read has it held in memory."""

import asyncio
import json

import pytest
from sqlalchemy import delete
from sqlmodel import col, insert

from amplifier_api_server.control_plane.sessions import transcripts
from amplifier_api_server.control_plane.sessions.exports import PIECE_BYTES
from amplifier_api_server.control_plane.sessions.schemas import SessionDocument
from amplifier_api_server.tenants.ids import SessionId
from amplifier_api_server.tenants.models import Message, Session
from amplifier_api_server.tenants.repository import sessions
from tests.hostile_runtime import attacked

MIB = 1024 * 1024


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


async def filled(plane, bodies):
    """A session with these messages; and whose it is."""
    services, session_id = plane.app.services, await plane.session()
    principal = await services.authenticator.authenticate_token(plane.key)
    async with services.database.write() as db:
        made = await sessions.find(db, principal.tenant_id, SessionId(session_id))
        made.message_count, made.transcript_bytes = (
            len(bodies),
            sum(len(json.dumps(one, ensure_ascii=False).encode()) for one in bodies),
        )
        rows = [
            {
                "session_id": session_id,
                "seq": seq,
                "tenant_id": principal.tenant_id,
                "turn_id": f"req_{seq}",
                "role": body["role"],
                "body": body,
                "created_at": services.clock.now(),
            }
            for seq, body in enumerate(bodies)
        ]
        if rows:
            await db.execute(insert(Message), rows)
    return session_id, principal


def said(size, count=1):
    return [{"role": "assistant", "content": f"{number}: " + "é" * (size // 2)} for number in range(count)]


class Reader:
    """One request to the application itself, whose answer is read a piece at a time."""

    def __init__(self, plane, path):
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"server"), (b"x-api-key", plane.key.encode())],
            "client": ("192.0.2.1", 1),
            "server": ("server", 80),
        }
        self._asked = False
        self._pieces = asyncio.Queue(1)
        self._may_go_on = asyncio.Semaphore(0)
        self.task = asyncio.create_task(plane.app.asgi(scope, self._receive, self._send))

    async def _receive(self):
        if self._asked:
            await asyncio.Event().wait()
        self._asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def _send(self, message):
        await self._pieces.put(message)
        await self._may_go_on.acquire()

    async def next(self):
        async with asyncio.timeout(60):
            message = await self._pieces.get()
        self._may_go_on.release()
        return message

    async def leave(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.mark.parametrize(
    "bodies",
    [
        [],
        said(10),
        said(100, 600),
        said(400_000, 7),
        [*said(10), *said(3 * MIB), *said(PIECE_BYTES - 1100), *said(2 * MIB), *said(10, 3)],
        [{"role": "assistant", "content": "x" * 2 * MIB, "nested": {"a": [1.5, None, True, "\u2028"]}}],
    ],
    ids=["none", "one", "many", "pieces", "large ones among small ones", "a large one with members"],
)
async def test_what_is_written_in_pieces_is_the_document(plane, bodies):
    session_id, principal = await filled(plane, bodies)
    async with plane.client() as me:
        answer = await me.get(f"/v1/sessions/{session_id}/export")
    assert answer.headers["content-type"] == "application/json"
    async with plane.app.services.database.read() as db:
        session = await sessions.find(db, principal.tenant_id, SessionId(session_id))
        messages = await sessions.messages(db, principal.tenant_id, SessionId(session_id))
    whole = SessionDocument.model_validate(transcripts.document(session, messages))
    assert answer.json() == whole.model_dump(mode="json")


@pytest.mark.parametrize("bodies", [said(700_000, 12), said(9 * MIB)], ids=["messages", "one message"])
async def test_a_reader_who_stops_has_one_piece_held_and_no_transaction(plane, bodies):
    session_id, _ = await filled(plane, bodies)
    reader = Reader(plane, f"/v1/sessions/{session_id}/export")
    assert (await reader.next())["status"] == 200
    await reader.next()
    pieces = [await reader.next() for _ in range(3)]
    assert all(len(one["body"]) <= PIECE_BYTES + 2048 for one in pieces)
    assert plane.app.services.database._read_engine.pool.checkedout() == 0
    await reader.leave()
    assert plane.app.services.streams.all() == []


async def test_a_document_has_what_was_there_when_it_was_asked_for(plane):
    session_id, principal = await filled(plane, said(700_000, 3))
    reader = Reader(plane, f"/v1/sessions/{session_id}/export")
    assert (await reader.next())["status"] == 200
    async with plane.app.services.database.write() as db:
        at = plane.app.services.clock.now()
        tenant_id = principal.tenant_id
        await sessions.add_messages(db, tenant_id, SessionId(session_id), "req_late", 3, said(10), at)
    text = b""
    while (message := await reader.next()).get("more_body"):
        text += message["body"]
    await reader.task
    assert [one["seq"] for one in json.loads(text)["messages"]] == [0, 1, 2]


@pytest.mark.parametrize("why", ["it is deleted", "the key is revoked"])
async def test_a_document_that_breaks_off_does_not_look_whole(plane, why):
    session_id, principal = await filled(plane, said(700_000, 5))
    reader = Reader(plane, f"/v1/sessions/{session_id}/export")
    assert (await reader.next())["status"] == 200
    await reader.next()
    if why == "it is deleted":
        async with plane.app.services.database.write() as db:
            await db.execute(delete(Message).where(col(Message.session_id) == session_id))
            await db.execute(delete(Session).where(col(Session.id) == session_id))
    else:
        plane.app.services.streams.end_credential(principal.credential_id)
    seen = []
    while not reader.task.done():
        asked = asyncio.create_task(reader.next())
        await asyncio.wait([asked, reader.task], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            seen.append(asked.result())
        else:
            asked.cancel()
    with pytest.raises(ConnectionAbortedError):
        await reader.task
    assert all(one.get("more_body") for one in seen), "the last piece of an answer says that it is the last"


async def test_a_page_of_messages_ends_where_it_has_4_mib_and_its_cursor_goes_on(plane):
    session_id, _ = await filled(plane, [*said(1_500_000, 4), *said(6 * MIB), *said(10, 2)])
    seen, cursor = [], None
    async with plane.client() as me:
        while True:
            params = {"cursor": cursor} if cursor else {}
            page = (await me.get(f"/v1/sessions/{session_id}/messages", params=params)).json()
            seen.append([one["seq"] for one in page["messages"]])
            if (cursor := page["next_cursor"]) is None:
                break
    assert seen == [[0, 1], [2, 3], [4], [5, 6]]


async def test_graphql_pages_end_at_the_same_places(plane):
    session_id, _ = await filled(plane, said(1_500_000, 3))
    query = f'{{ messages(sessionId: "{session_id}") {{ nodes {{ seq }} pageInfo {{ hasNextPage endCursor }} }} }}'
    async with plane.client() as me:
        found = (await me.post("/graphql", json={"query": query})).json()["data"]["messages"]
        assert ([one["seq"] for one in found["nodes"]], found["pageInfo"]["hasNextPage"]) == ([0, 1], True)
        after = found["pageInfo"]["endCursor"]
        rest = await me.get(f"/v1/sessions/{session_id}/messages", params={"cursor": after})
    assert ([one["seq"] for one in rest.json()["messages"]], rest.json()["next_cursor"]) == ([2], None)


@pytest.mark.parametrize(("count", "codes"), [(2, []), (3, ["answer_too_large"])])
async def test_graphql_answers_a_document_up_to_4_mib(plane, count, codes):
    session_id, _ = await filled(plane, said(1_500_000, count))
    async with plane.client() as me:
        answer = await me.post("/graphql", json={"query": f'{{ exportSession(sessionId: "{session_id}") }}'})
    errors = answer.json().get("errors", [])
    assert [one["extensions"]["code"] for one in errors] == codes
    assert [one["extensions"]["status"] for one in errors] == [413 for _ in codes]


def test_a_message_larger_than_a_page_is_a_page_by_itself():
    assert transcripts.count_within([], 10) == 0
    assert transcripts.count_within([(0, 11), (1, 1)], 10) == 1
    assert transcripts.count_within([(0, 9), (1, 1), (2, 1)], 10) == 2
