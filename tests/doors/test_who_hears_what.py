"""Following a tenant's events shows nothing, on any door, that the rest of the API would keep from who follows."""

import json

import pytest_asyncio

from tests.doors import honest
from tests.doors.clients import Callers
from tests.doors.served import listening


@pytest_asyncio.fixture
async def served(tmp_path):
    async with listening(tmp_path) as one:
        honest.behave(one.plane.fleet)
        yield one


async def until(mark, events):
    heard = []
    async for event in events:
        heard.append(json.dumps(event))
        if mark in heard[-1]:
            return "\n".join(heard)
    raise AssertionError("it ended")


async def test_a_developer_hears_of_sessions_and_not_of_keys_and_members(served):
    async with served.plane.client() as admin:
        developer = (await admin.post("/v1/keys", json={"name": "mine", "role": "developer"})).json()
        made = (await admin.post("/v1/keys", json={"name": "hidden", "role": "readonly"})).json()
        assert (await admin.delete(f"/v1/keys/{made['id']}")).status_code == 204
        assert (await admin.post("/v1/members", json={"name": "hidden", "role": "readonly"})).status_code == 201
        mark = (await admin.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]
    async with await Callers.known(served.port, developer["key"]) as callers:

        async def of_socket():
            while True:
                yield await callers.socket.hear()

        by_rest = await until(mark, callers.rest.events("/v1/events?from=start"))
        document = "subscription { events(fromStart: true) { type data } }"
        by_graphql = await until(mark, callers.graphql.events(document))
        assert (await callers.socket.ask("events.subscribe", start=True)).problem is None
        by_socket = await until(mark, of_socket())
    async with await Callers.known(served.port, served.plane.key) as callers:
        everything = await until(mark, callers.rest.events("/v1/events?from=start"))
    for hidden in ("key.created", "key.revoked", "member.added", made["id"]):
        assert hidden in everything
        for heard in (by_rest, by_graphql, by_socket):
            assert hidden not in heard


async def test_what_one_may_not_read_is_refused_by_name_on_every_door(served):
    async with served.plane.client() as admin:
        developer = (await admin.post("/v1/keys", json={"name": "mine", "role": "developer"})).json()
    async with await Callers.known(served.port, developer["key"]) as callers:
        answers = [
            await callers.rest.ask("GET", "/v1/events", query={"types": "session.created,key.created"}),
            await callers.graphql.ask('subscription { events(types: ["session.created", "key.created"]) { id } }'),
            await callers.socket.ask("events.subscribe", types=["session.created", "key.created"]),
        ]
        for one in answers:
            assert (one.problem["status"], one.code, one.problem["permission"]) == (403, "forbidden", "keys:read")
        again = await callers.socket.ask("events.subscribe", types=["session.created"])
        assert again.problem is None, "a refused one leaves nothing behind"
