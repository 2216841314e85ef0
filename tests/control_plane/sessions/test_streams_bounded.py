"""A tenant has a bounded number of streams and sockets: connections are everybody's."""

import asyncio

import pytest

from tests.hostile_runtime import attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path, server={"max_streams_per_tenant": 2}) as one:
        yield one


async def test_one_stream_too_many_is_refused_and_there_is_room_again_when_one_ends(plane):
    go = asyncio.Event()

    async def stream(request):
        await request.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await go.wait()
        await request.runtime.hand_over(request)
        await request.say(b"0\r\n\r\n")

    plane.fleet.answers["POST", "turn"] = stream
    plane.fleet.answers["GET", "events"] = stream
    session = await plane.session()
    running = [asyncio.create_task(plane.execute(session, stream=True))]
    streams = plane.app.services.streams
    while len(streams.all()) < 1:
        await asyncio.sleep(0.01)
    (turn,) = plane.app.services.turns.live.all()
    path = f"/v1/sessions/{session}/executions/{turn.id}/events"
    async with plane.client() as client:
        running.append(asyncio.create_task(client.get(path)))
        while len(streams.all()) < 2:
            await asyncio.sleep(0.01)
        for refused in (
            await client.get(path),
            await client.get("/v1/events"),
            await plane.execute(session, stream=True),
        ):
            assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
        async with plane.client(plane.operator_key) as operator:
            made = await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})
        async with plane.client(made.json()["admin_key"]) as other:
            assert (await other.get(path)).status_code == 404, "another tenant's room is its own"
        go.set()
        await asyncio.gather(*running)
        assert (await client.get(path)).status_code == 200
