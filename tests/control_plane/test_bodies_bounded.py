"""Bodies at the public door count before they are read: as requests, and by what they hold in memory."""

import asyncio
import contextlib
import itertools
import json

import pytest
from structlog.testing import capture_logs

from amplifier_api_server.control_plane.body_room import (
    MAX_HELD_BYTES,
    MAX_HELD_BYTES_OF_ALL,
    STRANGERS_BYTES,
    STRANGERS_BYTES_OF_ALL,
    WEIGHT,
    BodyRoom,
)
from amplifier_api_server.tenants.errors import Unavailable
from tests.hostile_runtime import attacked

LARGE = 31 * 1024 * 1024
AT_ONCE = MAX_HELD_BYTES // (LARGE * WEIGHT)


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


class Sending:
    """A request whose body is announced; `reading` is set once somebody waits for it, and nothing comes until `rest` is."""

    def __init__(self, plane, path, *, key=None, headers=(), length=LARGE, address="192.0.2.1"):
        announced = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [announced, (b"content-type", b"application/json"), *headers]
            + ([(b"x-api-key", key.encode())] if key else []),
            "client": (address, 1),
            "server": None,
            "state": {},
        }
        self.reading, self.more = asyncio.Event(), asyncio.Queue()
        self.status, self.headers, self.body = 0, {}, b""
        self.task = asyncio.create_task(plane.app.asgi(self._scope, self._receive, self._send))

    async def _receive(self):
        self.reading.set()
        return await self.more.get()

    async def _send(self, message):
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], dict(message["headers"])
        else:
            self.body += message.get("body", b"")

    async def begun(self):
        """Wait until its body is wanted, or it is answered; its code, None where it is being read."""
        reading = asyncio.create_task(self.reading.wait())
        await asyncio.wait({self.task, reading}, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        reading.cancel()
        return json.loads(self.body)["code"] if self.task.done() else None

    async def leave(self):
        self.more.put_nowait({"type": "http.disconnect"})
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def tenant(plane, tier):
    async with plane.client(plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json={"name": tier, "tier": tier})
    return made.json()["admin_key"]


@pytest.fixture
async def other(plane):
    return await tenant(plane, "enterprise")


DOORS = {
    "import": ("/v1/sessions/import", ()),
    "import with a key": ("/v1/sessions/import", ((b"idempotency-key", b"one"),)),
    "collection": ("/v1/collections", ()),
}


@pytest.mark.parametrize("door", DOORS)
async def test_a_tenant_s_large_bodies_are_refused_before_they_are_read(plane, other, door):
    path, headers = DOORS[door]
    held = [Sending(plane, path, key=plane.key, headers=headers) for _ in range(AT_ONCE)]
    assert [await one.begun() for one in held] == [None] * AT_ONCE
    for _ in range(60):
        refused = Sending(plane, path, key=plane.key, headers=headers)
        assert await refused.begun() == "busy"
        assert not refused.reading.is_set(), "it was read all the same"
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"2")
    others = Sending(plane, path, key=other)
    assert await others.begun() is None, "another tenant has room of its own"
    async with plane.client() as client:
        assert (await client.post("/v1/roles", json={"name": "small"})).status_code != 503, "so have small bodies"
    for one in [*held, others]:
        await one.leave()
    again = Sending(plane, path, key=plane.key)
    assert await again.begun() is None, "what was held is given back"
    await again.leave()


async def test_small_bodies_without_end_are_bounded_too(plane):
    """GraphQL, and every other body that is small by itself."""
    length = 2 * 1024 * 1024 - 1
    most = MAX_HELD_BYTES // (length * WEIGHT)
    held = [Sending(plane, "/graphql", key=plane.key, length=length) for _ in range(most + 20)]
    codes = [await one.begun() for one in held]
    assert codes.count(None) == most
    assert codes.count("busy") == 20
    for one in held:
        await one.leave()


async def test_a_body_of_unknown_length_is_counted_as_it_comes(plane):
    chunks = [Sending(plane, "/v1/sessions/import", key=plane.key, length=None) for _ in range(AT_ONCE + 1)]
    for one in chunks:
        assert await one.begun() is None
        one.more.put_nowait({"type": "http.request", "body": b"x" * LARGE, "more_body": True})
    while not any(one.task.done() for one in chunks):
        await asyncio.sleep(0.001)
    assert [await one.begun() for one in chunks if one.task.done()] == ["busy"]
    for one in chunks:
        await one.leave()


async def test_without_a_key_the_network_is_counted(plane, monkeypatch):
    monkeypatch.setattr(plane.app.asgi._room._strangers, "_most_of_one", 1000 * WEIGHT)
    path = "/auth/device/code"
    held = Sending(plane, path, length=900, address="2001:db8::1")
    assert await held.begun() is None
    neighbour = Sending(plane, path, length=900, address="2001:db8::2")
    assert await neighbour.begun() == "busy"
    other = Sending(plane, path, length=900, address="2001:db8:0:1::1")
    assert await other.begun() is None
    for one in (held, other):
        await one.leave()


async def test_a_request_counts_before_its_body_is_read(tmp_path):
    async with attacked(tmp_path) as plane:
        key = await tenant(plane, "free")
        async with plane.client(key) as client:
            policy = (await client.get("/v1/limits")).json()
        most = next(one["limit"] for one in policy["limits"] if one["name"] == "requests_per_minute")
        small = [Sending(plane, "/v1/sessions/import", key=key, length=100) for _ in range(most + 30)]
        codes = [await one.begun() for one in small]
        assert codes.count(None) == most
        assert codes.count("rate_limited") == 30
        for one in small:
            await one.leave()


async def test_strangers_who_announce_bodies_take_no_room_from_tenants(plane):
    length = 2 * 1024 * 1024
    held = [
        Sending(plane, "/auth/device/token", length=length, address=f"192.0.2.{number % 12}")
        for number in range(12 * (STRANGERS_BYTES // (length * WEIGHT) + 1))
    ]
    codes = [await one.begun() for one in held]
    assert "busy" in codes, "the strangers' own room is full"
    assert plane.app.asgi._room.held_bytes <= STRANGERS_BYTES_OF_ALL
    for _ in range(AT_ONCE):
        held.append(known := Sending(plane, "/v1/sessions/import", key=plane.key))
        assert await known.begun() is None
    for one in held:
        await one.leave()
    assert plane.app.asgi._room.held_bytes == 0


async def test_who_leaves_in_the_middle_of_a_body_is_no_failure_of_ours(plane):
    with capture_logs() as logged:
        for path in ("/auth/device/token", "/auth/device/code", "/v1/sessions", "/v1/sessions/import", "/graphql"):
            one = Sending(plane, path, key=plane.key, length=100)
            assert await one.begun() is None
            one.more.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
            one.more.put_nowait({"type": "http.disconnect"})
            await one.task
            assert one.status < 500
    assert [line for line in logged if line["log_level"] == "error"] == []


def test_the_largest_body_that_is_allowed_fits():
    BodyRoom(MAX_HELD_BYTES_OF_ALL).enter("tenant").hold(MAX_HELD_BYTES_OF_ALL)


def test_whoever_takes_all_that_they_may_leaves_room_for_those_who_come_later():
    room = BodyRoom()
    held, taken = [], []
    for number in range(24):
        held.append(one := room.enter(f"tenant {number}"))
        before = room.held_bytes
        with contextlib.suppress(Unavailable):
            for bodies in itertools.count(1):
                one.hold(bodies * 1024 * 1024)
        taken.append(room.held_bytes - before)
    assert taken[0] == MAX_HELD_BYTES
    assert all(taken), "a small body was refused"
    assert room.held_bytes < MAX_HELD_BYTES_OF_ALL
    held[0].answered()
    assert room.held_bytes == sum(taken) - MAX_HELD_BYTES + MAX_HELD_BYTES // WEIGHT
    for one in held:
        one.release()
        one.release()
    assert room.held_bytes == 0


def test_all_have_a_bound_together():
    room = BodyRoom()
    held = [room.enter(f"tenant {number}") for number in range(MAX_HELD_BYTES_OF_ALL // (1024 * 1024 * WEIGHT))]
    for one in held:
        one.hold(1024 * 1024)
    with pytest.raises(Unavailable) as refused:
        room.enter("one more").hold(1)
    assert refused.value.stable_code == "busy"
    assert room.held_bytes == MAX_HELD_BYTES_OF_ALL


@pytest.mark.parametrize(
    ("path", "values", "is_counted"),
    [
        ("/v1/sessions", 10_000, True),
        ("/v1/sessions", 100, False),
        ("/v1/sessions/import", 10_000, True),
        ("/graphql", 10_000, True),
        ("/v1/sessions/sess_none/execute", 10_000, True),
    ],
)
async def test_a_large_body_waits_for_its_tenants_share_of_the_loop(plane, monkeypatch, path, values, is_counted):
    asked, queue = [], plane.app.services.fair_queue

    async def admit(key, seconds):
        asked.append((key, seconds))

    monkeypatch.setattr(type(queue), "admit", lambda _, key, seconds: admit(key, seconds))
    async with plane.client() as client:
        await client.post(path, json={"context": {"a": list(range(values))}})
    assert [key[:4] for key, _ in asked] == ["ten_"] * is_counted
    assert all(0 < seconds < 0.1 for _, seconds in asked)


async def test_a_read_of_the_database_counts_as_its_callers(plane, monkeypatch):
    readers = plane.app.services.database._readers
    holders, turn = [], type(readers).turn

    def counted(self, holder):
        holders.append(holder)
        return turn(self, holder)

    monkeypatch.setattr(type(readers), "turn", counted)
    async with plane.client() as client:
        assert (await client.get("/v1/usage")).status_code == 200
        await client.post("/graphql", json={"query": "{ sessions { id } }"})
    assert {"ten_"} == {one[:4] for one in holders if one} - {"127."}
