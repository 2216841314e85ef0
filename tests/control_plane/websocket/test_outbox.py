"""What waits to be sent: answers ahead of events, everything in order, no more than there is room for."""

import asyncio

import pytest

from amplifier_api_server.control_plane.routes import ClientLeft
from amplifier_api_server.control_plane.websocket.outbox import Outbox


class Peer:
    """Takes what it is sent, one by one, when it is told to."""

    def __init__(self):
        self.seen = []
        self.allowed = asyncio.Semaphore(0)

    async def send(self, data):
        await self.allowed.acquire()
        self.seen.append(data)

    def take(self, count=1):
        for _ in range(count):
            self.allowed.release()


@pytest.fixture
async def peer():
    return Peer()


@pytest.fixture
async def outbox(peer):
    made = Outbox(peer.send)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_go_ahead_of_events(outbox, peer):
    for name in (b"e1", b"e2", b"e3"):
        await outbox.event(name)
    await settled()  # e1 is on its way
    outbox.answer(b"a")
    peer.take(4)
    await outbox.sent()
    assert peer.seen == [b"e1", b"a", b"e2", b"e3"]


async def test_streams_wait_for_a_client_that_does_not_read_and_go_on_in_turn(outbox, peer):
    size = 100_000

    async def stream(name):
        for count in range(6):
            await outbox.event(name * size)
            done[name] = count + 1

    done = {b"a": 0, b"b": 0}
    tasks = [asyncio.create_task(stream(name)) for name in done]
    await settled()
    assert sum(done.values()) <= 4, "the rest waits, with its sandbox"
    peer.take(6)
    await settled()
    assert min(done.values()) >= 3, "neither holds the other up"
    peer.take(6)
    await asyncio.gather(*tasks)
    await outbox.sent()
    assert sorted(one[:1] for one in peer.seen) == [b"a"] * 6 + [b"b"] * 6


async def test_a_stream_that_ends_while_it_waits_holds_nobody_up(outbox, peer):
    tasks = [asyncio.create_task(outbox.event(b"x" * 300_000)) for _ in range(4)]
    await settled()
    peer.take(1)
    tasks[1].cancel()
    tasks[2].cancel()
    await settled()
    peer.take(3)
    await asyncio.gather(*tasks, return_exceptions=True)
    await outbox.sent()
    assert len(peer.seen) == 2


async def test_no_further_message_is_read_while_too_many_answers_are_unread(outbox, peer):
    for count in range(64):
        outbox.answer(b"%d" % count)
    waiting = asyncio.create_task(outbox.room())
    await settled()
    outbox.answer(b"64")
    assert not waiting.done()
    peer.take(10)
    await settled()
    assert waiting.done()
    peer.take(100)
    await outbox.sent()
    assert peer.seen == [b"%d" % count for count in range(65)]


async def test_one_large_answer_that_is_unread_leaves_no_room_for_more(outbox, peer):
    outbox.answer(b"x" * 2 * 1024 * 1024)
    waiting = asyncio.create_task(outbox.room())
    await settled()
    assert not waiting.done()
    peer.take()
    async with asyncio.timeout(60):
        await waiting


async def test_what_is_answered_to_nobody_is_not_kept(outbox):
    for _ in range(3):
        outbox.answer(b"x" * 1024 * 1024)
    waiting = asyncio.create_task(outbox.room())
    await settled()
    outbox.close()
    outbox.answer(b"late")
    with pytest.raises(ClientLeft):
        await waiting
    assert not outbox._answers
