"""A thousand sockets open at once, a hundred of them with a stream: all are served, and none costs much."""

import asyncio
import json
import resource
import time

import pytest
from websockets.asyncio.client import connect

from tests.system.server import FREE, eventually

SOCKETS, STREAMS, TOKENS, RATE = 1_000, 100, 100, 10
_DESCRIPTORS = 2 * SOCKETS + 500
_MAX_KIB_A_SOCKET = 200


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SANDBOX__MAX_SESSIONS_PER_RUNTIME": "64", "AMPLIFIER_WEBSOCKET__PING_INTERVAL": "5s"}


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        pytest.skip(f"SKIPPED, NOT TESTED: this process may open {hard} files; {_DESCRIPTORS} are needed")
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib(server):
    with open(f"/proc/{server.process.pid}/statm") as found:
        return int(found.read().split()[1]) * resource.getpagesize() // 1024


async def ask(socket, kind, **members):
    """The answer to a message; events that come before it are left out."""
    await socket.send(json.dumps({"type": kind, "id": kind, **members}))
    async with asyncio.timeout(100):
        while True:
            found = json.loads(await socket.recv())
            if found.get("id") == kind and "event_id" not in found:
                return found


async def opened(me):
    socket = await connect(
        f"ws://127.0.0.1:{me.port}/ws", compression=None, ping_interval=None, open_timeout=100, max_queue=None
    )
    answer = await ask(socket, "auth", token=me.key)
    assert answer["type"] == "auth.ok", answer
    return socket


async def all_opened(me):
    sockets = []
    for _ in range(SOCKETS // 50):
        sockets += await asyncio.gather(*(opened(me) for _ in range(50)))
    return sockets


async def streamed(socket, session):
    """The numbers of the events of one execution, and the seconds from each token to the next."""
    await socket.send(json.dumps({"type": "execute", "session_id": session, "prompt": f"stream {TOKENS} at {RATE}/s"}))
    seen = []
    async with asyncio.timeout(200):
        while not seen or seen[-1]["type"] not in {"complete", "error"}:
            found = json.loads(await socket.recv())
            if "event_id" in found:
                seen.append(found)
    assert seen[-1]["type"] == "complete", seen[-1]
    return [int(one["event_id"].rpartition(":")[2]) for one in seen]


async def timed_pings(sockets):
    took = []
    for socket in sockets:
        begun = time.monotonic()
        assert (await ask(socket, "ping"))["type"] == "pong"
        took.append(time.monotonic() - begun)
        await asyncio.sleep(0.002)
    return sorted(took)


@pytest.mark.timeout(300)
async def test_a_thousand_sockets_with_streams_on_a_hundred(server):
    me = server.tenant(**FREE)
    sessions = await asyncio.gather(*(asyncio.to_thread(me.session) for _ in range(STREAMS)))
    before = resident_kib(server)
    sockets = await all_opened(me)
    try:
        a_socket = (resident_kib(server) - before) / SOCKETS
        assert a_socket < _MAX_KIB_A_SOCKET, "an idle socket costs little"
        usual = (await timed_pings(sockets[STREAMS : STREAMS + 20]))[-1]
        streams = asyncio.gather(
            *(streamed(socket, session) for socket, session in zip(sockets, sessions, strict=False))
        )
        took = await timed_pings(sockets[STREAMS:])
        numbers = await streams
    finally:
        await asyncio.gather(*(socket.close() for socket in sockets))
    assert all(found == list(range(1, TOKENS + 2)) for found in numbers), "no event lost, none doubled"
    assert took[len(took) // 2] < 0.25 + 20 * usual, "who does not stream is answered meanwhile"
    assert took[-1] < 5 + 20 * usual, "a ping without streams takes what the machine takes"
    metrics = server.operator()
    assert eventually(lambda: b"amplifier_open_sockets 0.0" in metrics.call("GET", "/metrics").body)
