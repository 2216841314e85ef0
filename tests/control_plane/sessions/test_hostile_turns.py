"""Turns whose runtime means harm: each ends, is told, and leaves nothing held."""

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.sessions import endings, executions, pipe, settlement
from tests.hostile_runtime import NOTHING, Attacked, Request, attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(endings, "_LAST_WORD_SECONDS", 0.2)
    monkeypatch.setattr(pipe, "_AFTER_END_SECONDS", 0.2)


async def settled(plane: Attacked) -> dict[str, int]:
    """What is left, once what goes on in the background has ended."""
    for _ in range(300):
        left = await plane.left()
        if left == NOTHING:
            break
        await asyncio.sleep(0.02)
    return left


def frames(text: str) -> list[tuple[str, dict]]:
    made = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line and not line.startswith(":"))
        if "event" in fields:
            made.append((fields["event"], json.loads(fields["data"])))
    return made


SSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def nothing_more(request: Request) -> None:
    """The turn is handed over, and the stream neither ends nor says anything."""
    await request.say(SSE)
    await request.runtime.hand_over(request)
    await request.hang()


async def endless_events(request: Request) -> None:
    await request.say(SSE)
    await request.runtime.hand_over(request)
    frame = chunk(
        b"id: " + request.turn_id.encode() + b':1\nevent: token\ndata: {"content":"%b"}\n\n' % (b"x" * 60_000)
    )
    while True:
        await request.say(frame)


async def never_a_head(request: Request) -> None:
    await request.runtime.hand_over(request)
    await request.hang()


async def endless_refusal(request: Request) -> None:
    await request.say(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await request.say(chunk(b"x" * 60_000))


async def slow_refusal(request: Request) -> None:
    await request.say(b"HTTP/1.1 500 No\r\nContent-Length: 60000\r\n\r\n")
    await request.hang()


async def huge_number(request: Request) -> None:
    await request.say(
        SSE, chunk(b"id: " + request.turn_id.encode() + b":" + b"9" * 5000 + b"\nevent: token\ndata: {}\n\n")
    )
    request.writer.transport.abort()


async def cut_short(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
    request.writer.transport.abort()


async def two_answers(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")


async def switching(request: Request) -> None:
    await request.say(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nrest")


async def redirect(request: Request) -> None:
    await request.say(b"HTTP/1.1 307 There\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "behaviour",
    [
        nothing_more,
        endless_events,
        endless_refusal,
        slow_refusal,
        huge_number,
        cut_short,
        two_answers,
        switching,
        redirect,
    ],
)
async def test_whatever_the_runtime_answers_the_turn_ends_and_nothing_is_held(plane, behaviour, stream, monkeypatch):
    monkeypatch.setattr(pipe, "_AFTER_END_BYTES", 1_000_000)
    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = behaviour
    async with asyncio.timeout(60):
        answer = await plane.execute(session_id, stream=stream)
        if stream and answer.status_code == 200:
            assert frames(answer.text)[-1][0] in ("complete", "error")
        else:
            assert answer.status_code in (200, 502)
        assert await settled(plane) == NOTHING
    del plane.fleet.answers["POST", "turn"]
    assert (await plane.execute(session_id)).status_code == 200


async def test_a_runtime_that_never_answers_keeps_no_connection_when_its_turn_has_ended(plane):
    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = never_a_head
    async with asyncio.timeout(60):
        assert (await plane.execute(session_id)).status_code == 200
        assert await settled(plane) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        {"base": -1},
        {"base": 7},
        {"base": 10**30},
        {"last_event": 10**30},
        {"last_event": -1},
        {"messages": [{}] * 20_000},
        {"state": {"a": [[]] * 300_000}},
        {"state": {"a": "x" * 5_000_000}},
        {"tool_calls": [{"tool": "", "status": "failed", "call_id": "", "duration_ms": 10**40}]},
        {"events": "x" * 9_000_000},
    ],
    ids=lambda body: next(iter(body)),
)
async def test_a_checkpoint_out_of_bounds_fails_its_turn_and_nothing_else(plane, body):
    async def junk(request: Request) -> None:
        answer = await request.runtime.hand_over(request, **body)
        assert answer.status_code < 500, answer.text
        await request.reply(200)

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = junk
    answer = await plane.execute(session_id)
    assert (answer.status_code, answer.json()["code"]) in {(502, "not_durable"), (502, "stale_checkpoint")}
    assert await settled(plane) == NOTHING


@pytest.mark.parametrize(
    "raw",
    [
        b'"state": {"a": NaN}',
        b'"state": {"a": 1e999}',
        b'"state": {"a": "\\ud800"}',
        b'"state": {"a": "\xff"}',
        b'"state": ' + b'{"a":' * 300 + b"1" + b"}" * 300,
        b'"failure": {"code": "x", "detail": "y", "retry_after_seconds": Infinity}',
        b'"request_id": "another"',
        b'"status": "running"',
        b'"usage": {"total_tokens": 0}',
    ],
)
async def test_a_checkpoint_that_is_no_clean_json_is_refused(plane, raw):
    statuses = []

    async def junk(request: Request) -> None:
        head = f'{{"session_id": "{request.session_id}", "request_id": "{request.turn_id}", "status": "failed", "base": 0, '
        path = f"/turns/{request.turn_id}/checkpoint"
        statuses.append((await request.runtime.gateway("POST", path, head.encode() + raw + b"}")).status_code)
        await request.reply(200)

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = junk
    assert (await plane.execute(session_id)).json()["code"] == "not_durable"
    assert statuses == [422]


async def test_a_failure_that_makes_no_sense_is_told_in_bounds(plane):
    failure = {"code": "Not A Code\r\n" * 100, "detail": "x" * 100_000, "retry_after_seconds": 1e300}

    async def junk(request: Request) -> None:
        await request.runtime.hand_over(request, status="failed", failure=failure)
        await request.reply(200)

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = junk
    answer = await plane.execute(session_id)
    assert (answer.status_code, answer.json()["code"]) == (502, "runtime_failed")
    assert len(answer.content) < 10_000
    assert answer.headers["retry-after"] == "86400"


async def test_a_transcript_can_be_filled_but_not_without_end(plane, monkeypatch):
    monkeypatch.setattr(settlement, "MAX_TRANSCRIPT_BYTES", 1000)
    base = 0

    async def talk(request: Request) -> None:
        nonlocal base
        answer = await request.runtime.hand_over(request, base=base, messages=[{"role": "user", "content": "x" * 400}])
        base += answer.json()["result"]["status"] == "completed"
        await request.reply(200)

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = talk
    assert [(await plane.execute(session_id)).status_code for _ in range(2)] == [200, 200]
    assert (await plane.execute(session_id)).json()["code"] == "transcript_full"
    async with plane.client() as client:
        assert len((await client.get(f"/v1/sessions/{session_id}/messages")).json()["messages"]) == 2


async def test_another_runtimes_turn_is_nobodys(plane):
    """A turn's id is no secret to its own tenant; to any other runtime it means nothing."""
    answers = []
    other = asyncio.Event()

    async def wait(request: Request) -> None:
        await other.wait()
        await request.runtime.hand_over(request)
        await request.reply(200)

    async with plane.client(plane.operator_key) as operator:
        made = (await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})).json()
    mine, theirs = await plane.session(), None
    async with plane.client(made["admin_key"]) as client:
        theirs = (await client.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]
    plane.fleet.answers["POST", "turn"] = wait
    running = asyncio.create_task(plane.execute(mine))
    while not plane.app.services.turns.live.all():
        await asyncio.sleep(0.01)
    turn = plane.app.services.turns.live.all()[0]
    homes = plane.app.services.fleet.sessions
    stranger = plane.fleet.runtimes[next(one for one, held in homes.items() if theirs in held)]
    body = {"session_id": mine, "request_id": turn.id, "status": "completed", "base": 0, "response": "forged"}
    answers.append(await stranger.gateway("POST", f"/turns/{turn.id}/checkpoint", body))
    chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
    answers.append(await stranger.gateway("POST", "/v1/chat/completions", chat, {"X-Amplifier-Turn": turn.id}))
    other.set()
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(404, "no_turn"), (403, "no_turn")]
    result = await running
    assert (result.status_code, result.json()["response"]) == (200, "")


async def test_a_settlement_is_done_though_who_asked_for_it_went_away(plane, monkeypatch):
    """A client that hangs up just then must not leave its turn running for ever."""
    written, go = asyncio.Event(), asyncio.Event()
    ends = plane.app.services.endings._settlement
    write = ends._write

    async def slow(*args):
        done = await write(*args)
        written.set()
        await go.wait()
        return done

    monkeypatch.setattr(ends, "_write", slow)
    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = Request.hang
    execute = asyncio.create_task(plane.execute(session_id))
    while not plane.app.services.turns.live.all():
        await asyncio.sleep(0.01)
    asking = asyncio.create_task(
        plane.app.services.endings.lost(plane.app.services.turns.live.all()[0], "for the test")
    )
    await written.wait()
    asking.cancel()
    await asyncio.wait([asking])
    go.set()
    async with asyncio.timeout(60):
        assert (await execute).status_code == 502
    assert await settled(plane) == NOTHING


async def test_a_commit_that_was_reported_as_failed_and_was_done_ends_the_turn_all_the_same(plane, monkeypatch):
    ends = plane.app.services.endings._settlement
    write, failed = ends._write, []

    async def committed_and_lost(*args):
        done = await write(*args)
        if not failed:
            failed.append(True)
            raise OSError("the answer to the commit was lost")
        return done

    async def twice(request: Request) -> None:
        assert (await request.runtime.hand_over(request, response="once")).status_code == 500
        answer = await request.runtime.hand_over(request, response="twice")
        assert answer.json()["result"]["response"] == "once"
        await request.reply(200)

    monkeypatch.setattr(ends, "_write", committed_and_lost)
    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = twice
    answer = await plane.execute(session_id)
    assert (answer.status_code, answer.json()["response"]) == (200, "once")
    assert await settled(plane) == NOTHING


async def test_a_turn_that_could_not_be_ended_for_a_while_ends_when_it_can(plane, monkeypatch):
    ends = plane.app.services.endings._settlement
    write, is_full = ends._write, True

    async def full(*args):
        if is_full:
            raise OSError("the disk is full")
        return await write(*args)

    monkeypatch.setattr(ends, "_write", full)
    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = cut_short
    with pytest.raises((OSError, ConnectionError)):
        await plane.execute(session_id, stream=True)
    assert (await plane.left())["live"] == 1
    is_full = False
    assert await settled(plane) == NOTHING
    del plane.fleet.answers["POST", "turn"]
    assert (await plane.execute(session_id)).status_code == 200


async def left_alone(plane: Attacked, session_id: str) -> None:
    """Execute as a stream, and hang up at once."""
    sent, messages = asyncio.Event(), [{"type": "http.request", "body": b'{"prompt": "hi", "stream": true}'}]

    async def receive():
        if messages:
            return messages.pop()
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(_):
        sent.set()

    path = f"/v1/sessions/{session_id}/execute"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await plane.app.asgi(scope | {"headers": [(b"x-api-key", plane.key.encode())]}, receive, send)


@pytest.mark.parametrize("how", ["ends", "dies"])
async def test_a_turn_whose_client_left_and_that_is_never_handed_over_does_not_run_for_ever(plane, how):
    go = asyncio.Event()

    async def give_up(request: Request) -> None:
        await request.say(SSE)
        await go.wait()
        if how == "ends":
            await request.say(b"0\r\n\r\n")
        else:
            request.writer.transport.abort()

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = give_up
    await left_alone(plane, session_id)
    assert (await plane.left())["live"] == 1
    go.set()
    assert await settled(plane) == NOTHING
    del plane.fleet.answers["POST", "turn"]
    assert (await plane.execute(session_id)).status_code == 200


async def test_who_only_reads_a_turn_does_not_end_it(plane, monkeypatch):
    monkeypatch.setattr(executions, "_ENDED_SECONDS", 0.1)
    go = asyncio.Event()

    async def wait(request: Request) -> None:
        await go.wait()
        await request.runtime.hand_over(request)
        await request.reply(200)

    async def no_such_turn(request: Request) -> None:
        await request.reply(404, {"code": "no_turn", "detail": "none"})

    session_id = await plane.session()
    plane.fleet.answers["POST", "turn"] = wait
    plane.fleet.answers["GET", "events"] = no_such_turn
    execute = asyncio.create_task(plane.execute(session_id))
    while not plane.app.services.turns.live.all():
        await asyncio.sleep(0.01)
    turn_id = plane.app.services.turns.live.all()[0].id
    async with plane.client() as client:
        events = await client.get(f"/v1/sessions/{session_id}/executions/{turn_id}/events")
    assert (events.status_code, events.json()["code"]) == (503, "unavailable")
    go.set()
    assert (await execute).status_code == 200
