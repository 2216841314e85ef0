"""Who may call for which turn, and that each call is counted once, whichever way it ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from .conftest import CHAT, ask, naming, streamed
from .scripted_upstream import DONE, answering, counted, delta, usage_chunk


def slow_stream(*, tail=()):
    """Ten tokens, then nothing until the other side is gone, unless `tail` follows its hanging up."""
    started, gone = asyncio.Event(), asyncio.Event()

    async def script(peer):
        await peer.stream()
        for _ in range(10):
            await peer.chunk(delta("a"))
        started.set()
        await peer.hung_up()
        gone.set()

    script.started, script.gone = started, gone
    return script


async def hold(client, turn_id="req_1"):
    """Open a stream, read its first bytes, and keep it."""
    context = client.stream("POST", CHAT, json=ask(stream=True), headers=naming(turn_id))
    answer = await context.__aenter__()
    parts = answer.aiter_raw()
    await anext(parts)
    return context, parts


@pytest.mark.parametrize("header", [{}, naming(""), naming("req_2"), naming("req_none"), naming("../req_1")])
async def test_only_a_turn_that_runs_in_this_runtime_calls_models(house, upstream, header):
    client = await house.runtime("run_1")
    await house.turn("req_1", "run_1")
    await house.turn("req_2", "run_2")
    got = await client.post(CHAT, json=ask(), headers=header)
    assert (got.status_code, got.json()["code"], got.json()["error"]["code"]) == (403, "no_turn", "no_turn")
    assert upstream.asked == []


async def test_a_finished_turn_calls_no_more(house, upstream):
    upstream.script = answering(delta("a", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    assert (await streamed(client)).status == 200
    await house.turns.finish("req_1", abort=False)
    assert (await streamed(client)).status == 403


async def test_usage_is_there_as_soon_as_the_sandbox_has_the_end(build, upstream):
    house = await build(drain=timedelta(minutes=5))

    async def script(peer):  # a server that keeps the body open after its last event
        await peer.stream()
        await peer.chunk(delta("a", "stop") + usage_chunk(5, 1) + DONE)
        await peer.hung_up()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    async with client.stream("POST", CHAT, json=ask(stream=True), headers=naming()) as answer:
        seen = b""
        async for part in answer.aiter_raw():
            seen += part
            if DONE in seen:
                async with asyncio.timeout(60):
                    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.total_tokens, usage.estimated) == (6, False)


async def test_a_dropped_stream_is_read_on_for_the_providers_count(house, upstream):
    dropped = asyncio.Event()

    async def script(peer):
        await peer.stream()
        await peer.chunk(delta("a"))
        await dropped.wait()
        await peer.chunk(delta("b") + delta("c", "stop") + usage_chunk(9, 3) + DONE)
        await peer.end()

    upstream.script = script
    client = await house.runtime()
    turn = await house.turn()
    context, _ = await hold(client)
    await context.__aexit__(None, None, None)
    [call] = turn.calls
    dropped.set()
    await call.ended()
    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (9, 3, False)


async def test_a_dropped_stream_is_not_read_on_for_ever(house, upstream):
    upstream.script = script = slow_stream()
    client = await house.runtime()
    turn = await house.turn()
    context, _ = await hold(client)
    await script.started.wait()
    await context.__aexit__(None, None, None)
    [call] = turn.calls
    async with asyncio.timeout(60):
        await call.ended()
        await script.gone.wait()
    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.completion_tokens, usage.estimated) == (10, True)


async def test_a_dropped_stream_with_a_running_count_ends_at_once(build, upstream):
    house = await build(provider={"continuous_usage": True}, drain=timedelta(minutes=5))

    async def script(peer):
        await peer.stream()
        await peer.chunk(delta("a", usage=counted(4, 7)))
        await peer.hung_up()

    upstream.script = script
    client = await house.runtime()
    turn = await house.turn()
    context, _ = await hold(client)
    [call] = turn.calls
    await context.__aexit__(None, None, None)
    async with asyncio.timeout(60):
        await call.ended()
    [usage] = await house.turns.finish("req_1", abort=False)
    assert (usage.total_tokens, usage.estimated) == (11, False)


async def test_cancelling_cuts_the_provider_at_once(build, upstream):
    house = await build(drain=timedelta(minutes=5))
    upstream.script = script = slow_stream()
    client = await house.runtime()
    await house.turn()
    context, parts = await hold(client)
    await script.started.wait()
    async with asyncio.timeout(60):
        [usage] = await house.turns.finish("req_1", abort=True)
        await script.gone.wait()
        rest = b"".join([part async for part in parts])
    assert (usage.completion_tokens, usage.estimated) == (10, True)
    assert b"no_turn" in rest
    await context.__aexit__(None, None, None)


async def test_a_turn_that_is_cancelled_before_the_first_byte_pays_its_prompt(build, upstream):
    house = await build(drain=timedelta(minutes=5))
    asked = asyncio.Event()

    async def script(peer):
        asked.set()
        await peer.hung_up()

    upstream.script = script
    client = await house.runtime()
    await house.turn()
    call = asyncio.create_task(client.post(CHAT, json=ask("x" * 4000, stream=True), headers=naming()))
    await asked.wait()
    [usage] = await house.turns.finish("req_1", abort=True)
    assert 1000 <= usage.prompt_tokens <= 1050
    assert (usage.completion_tokens, usage.estimated) == (0, True)
    assert (await call).status_code == 403


async def test_finishing_many_times_at_once_gives_each_call_once(house, upstream):
    upstream.script = script = slow_stream()
    client = await house.runtime()
    await house.turn()
    held = [await hold(client) for _ in range(5)]
    await script.started.wait()
    finished = await asyncio.gather(*(house.turns.finish("req_1", abort=bool(i % 2)) for i in range(8)))
    ids = [usage.call_id for usages in finished for usage in usages]
    assert len(ids) == len(set(ids)) == 5
    assert await house.turns.finish("req_1", abort=True) == []
    for context, _ in held:
        await context.__aexit__(None, None, None)


async def test_an_abort_hurries_a_finish_that_drains(build, upstream):
    house = await build(drain=timedelta(minutes=5))
    upstream.script = script = slow_stream()
    client = await house.runtime()
    await house.turn()
    context, _ = await hold(client)
    await script.started.wait()
    draining = asyncio.create_task(house.turns.finish("req_1", abort=False))
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        assert await house.turns.finish("req_1", abort=True) == []
        assert len(await draining) == 1
    await context.__aexit__(None, None, None)


async def test_finished_calls_of_a_long_turn_are_written_when_the_next_begins(house, upstream):
    upstream.script = answering(delta("a", "stop"), usage_chunk(5, 1), DONE)
    client = await house.runtime()
    turn = await house.turn()
    for _ in range(3):
        await streamed(client)
        if turn.step:
            await turn.step
    rest = await house.turns.finish("req_1", abort=False)
    written = [usage.call_id for step in house.steps for usage in step]
    assert len(written) == 2
    assert len({*written, *(usage.call_id for usage in rest)}) == 3


async def test_a_step_that_could_not_be_written_stays_pending(build, upstream):
    async def fail(turn, usages):
        raise ConnectionError("the database is away")

    house = await build(on_step=fail)
    upstream.script = answering(delta("a", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    for _ in range(3):
        await streamed(client)
    assert len({usage.call_id for usage in await house.turns.finish("req_1", abort=False)}) == 3


async def test_finish_waits_for_a_step_that_is_being_written(build, upstream):
    writing, written = asyncio.Event(), asyncio.Event()

    async def slow(turn, usages):
        writing.set()
        await written.wait()

    house = await build(on_step=slow)
    upstream.script = answering(delta("a", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    await streamed(client)
    await streamed(client)
    await writing.wait()
    finish = asyncio.create_task(house.turns.finish("req_1", abort=True))
    await asyncio.sleep(0.01)
    assert not finish.done()
    written.set()
    assert len(await finish) == 1
    assert [len(step) for step in house.steps] == [1]


async def test_a_runtime_that_dies_ends_its_calls(house, upstream):
    upstream.script = script = slow_stream()
    client = await house.runtime()
    await house.turn()
    context, _ = await hold(client)
    await script.started.wait()
    assert house.turns.of_runtime("run_1") == ["req_1"]
    await house.listeners.close("run_1")
    [usage] = await house.turns.finish("req_1", abort=True)
    assert usage.completion_tokens == 10
    await context.__aexit__(None, None, None)
    assert len(house.turns) == 0


async def test_all_places_taken_is_503_with_a_time_to_come_back(build, upstream):
    house = await build(max_concurrent_calls=2)
    upstream.script = slow_stream()
    client = await house.runtime()
    await house.turn()
    held = [await hold(client) for _ in range(2)]
    got = await client.post(CHAT, json=ask(), headers=naming())
    assert (got.status_code, got.json()["code"], got.headers["retry-after"]) == (503, "busy", "1")
    await house.turns.finish("req_1", abort=True)
    for context, _ in held:
        await context.__aexit__(None, None, None)


async def test_one_turn_can_not_take_every_place(house, upstream):
    upstream.script = slow_stream()
    client = await house.runtime()
    await house.turn()
    held = [await hold(client) for _ in range(16)]
    assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 503
    await house.turns.finish("req_1", abort=True)
    for context, _ in held:
        await context.__aexit__(None, None, None)


async def test_sixty_calls_whose_bodies_dawdle_are_sixteen_at_most(house, upstream):
    """Places are taken before a body is waited for: else all of them would be looked at before any was taken."""
    await house.turn()
    path = await house.listeners.open("run_1")
    body = b'{"model": "default", "messages": [], "stream": true}'
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nX-Amplifier-Turn: req_1\r\nContent-Length: %d\r\n\r\n" % (
        CHAT.encode(),
        len(body),
    )
    sockets = [await asyncio.open_unix_connection(path) for _ in range(60)]
    for _, writer in sockets:
        writer.write(head + body[:1])
        await writer.drain()
    answers = [asyncio.ensure_future(reader.readline()) for reader, _ in sockets]
    waiting = set(answers)
    async with asyncio.timeout(60):
        while len(waiting) > 16:  # who is refused is told before the body has come
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert all(b" 503 " in one.result() for one in done)
    [turn] = house.turns._turns.values()
    assert turn.asking == 16
    for _, writer in sockets:
        writer.close()
    await asyncio.gather(*answers, return_exceptions=True)


async def test_places_that_were_given_back_are_given_back_once(house, upstream):
    upstream.script = answering(delta("x", "stop"), DONE)
    client = await house.runtime()
    turn = await house.turn()
    bad = client.post(CHAT, content=b"{", headers=naming())
    other = client.post(CHAT, json=ask(model=5), headers=naming())
    unknown = client.post(CHAT, json=ask(model="up/unknown"), headers=naming())
    statuses = [one.status_code for one in await asyncio.gather(bad, other, unknown)]
    assert statuses == [400, 400, 404]
    assert (await streamed(client)).status == 200
    assert turn.asking == 0


async def test_one_tenants_turns_leave_places_for_anothers(build, upstream):
    house = await build(max_concurrent_calls=16)
    upstream.script = slow_stream()
    clients = [await house.runtime(f"run_{number}") for number in range(4)]
    for number in range(3):
        await house.turn(f"req_{number}", f"run_{number}")
    held = []
    for number in range(3):
        for _ in range(8):
            if len(held) == 8:
                got = await clients[number].post(CHAT, json=ask(), headers=naming(f"req_{number}"))
                assert (got.status_code, got.json()["code"], got.headers["retry-after"]) == (503, "busy", "1")
            else:
                held.append(await hold(clients[number], f"req_{number}"))
    await house.turn("req_3", "run_3", tenant_id="ten_2")
    held += [await hold(clients[3], "req_3") for _ in range(4)]
    for number in range(4):
        await house.turns.finish(f"req_{number}", abort=True)
    for context, _ in held:
        await context.__aexit__(None, None, None)


async def test_ten_runtimes_at_once_get_their_own_answers_and_counts(house, upstream):
    async def script(peer):
        word = peer.asked.json["messages"][0]["content"]
        await peer.stream()
        for _ in range(20):
            await peer.chunk(delta(word))
            await asyncio.sleep(0)
        await peer.chunk(delta("", "stop") + usage_chunk(int(word), 20) + DONE)
        await peer.end()

    upstream.script = script

    async def one(number):
        client = await house.runtime(f"run_{number}")
        await house.turn(f"req_{number}", f"run_{number}")
        got = await asyncio.gather(*(streamed(client, ask(str(number)), f"req_{number}") for _ in range(5)))
        assert {one.text for one in got} == {str(number) * 20}
        usages = await house.turns.finish(f"req_{number}", abort=False)
        recorded = [usage for step in house.steps for usage in step if usage.prompt_tokens == number]
        return len({usage.call_id for usage in [*usages, *recorded]})

    assert await asyncio.gather(*map(one, range(1, 11))) == [5] * 10
