"""What a sandbox may ask of the control plane."""

from __future__ import annotations

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.model_gateway import bodies as bodies_module
from amplifier_api_server.runtime.protocol import Checkpoint, CheckpointAnswer, Failure
from amplifier_api_server.tenants.errors import Conflict

from .conftest import CHAT, ask, naming
from .scripted_upstream import DONE, answering, delta


def checkpoint(request_id: str = "req_1", **more) -> bytes:
    return (
        Checkpoint(session_id="sess_1", request_id=request_id, status="completed", base=0, **more)
        .model_dump_json()
        .encode()
    )


async def test_a_checkpoint_reaches_the_control_plane_with_the_runtime_that_sent_it(house):
    client = await house.runtime("run_7")
    got = await client.post("/turns/req_1/checkpoint", content=checkpoint(response="hi"))
    assert got.status_code == 200
    assert CheckpointAnswer.model_validate_json(got.content).data == {"request_id": "req_1"}
    [(runtime_id, body)] = house.checkpoints
    assert (runtime_id, body.response) == ("run_7", "hi")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/turns/req_2/checkpoint", checkpoint("req_1")),
        ("/turns/req_1/checkpoint", b"{}"),
        ("/turns/req_1/checkpoint", b"\xff"),
        ("/turns/req_1/checkpoint", b"[" * 100_000),
        ("/turns/req_1/checkpoint", checkpoint()[:-1] + b', "extra": 1}'),
        ("/turns/req_1/checkpoint", checkpoint()[:-1] + b', "base": "x"}'),
    ],
)
async def test_a_wrong_checkpoint_is_422_and_goes_no_further(house, path, body):
    client = await house.runtime()
    got = await client.post(path, content=body)
    assert got.status_code == 422
    assert Failure.model_validate_json(got.content).code == "invalid_request"
    assert house.checkpoints == []


async def test_a_checkpoint_is_read_in_steps_between_which_others_have_their_turn(house, monkeypatch):
    callers, queue = [], house.gateway._queue
    run = queue.run

    async def counted(key, work):
        callers.append(key)
        return await run(key, work)

    monkeypatch.setattr(queue, "run", counted)
    client = await house.runtime("run_1")
    assert (await client.post("/turns/req_1/checkpoint", content=checkpoint())).status_code == 200
    assert callers == ["run_1"] * 3


async def test_a_large_request_for_a_model_waits_for_its_tenants_share_of_the_loop(house, upstream, monkeypatch):
    asked, queue = [], house.gateway._queue

    async def admit(key, seconds):
        asked.append((key, seconds))

    monkeypatch.setattr(queue, "admit", admit)
    client = await house.runtime("run_1")
    turn = await house.turn("req_1", "run_1")
    for size in (10, 100_000):
        body = {"model": "m", "messages": [{"role": "user", "content": "x" * size}]}
        await client.post("/v1/chat/completions", json=body, headers={"X-Amplifier-Turn": "req_1"})
    assert [key for key, _ in asked] == [turn.tenant_id]
    assert 0 < asked[0][1] < 0.02


async def test_a_checkpoint_that_the_control_plane_refuses_says_why(house):
    async def refuse(runtime_id, body):
        raise Conflict("the transcript has another length", code="base_mismatch")

    house.gateway._checkpoint = refuse
    client = await house.runtime()
    got = await client.post("/turns/req_1/checkpoint", content=checkpoint())
    assert got.status_code == 409
    assert Failure.model_validate_json(got.content).code == "base_mismatch"


async def test_a_checkpoint_that_fails_is_500_without_detail(house):
    async def fail(runtime_id, body):
        raise RuntimeError("password=hunter2")

    house.gateway._checkpoint = fail
    client = await house.runtime()
    got = await client.post("/turns/req_1/checkpoint", content=checkpoint())
    assert (got.status_code, Failure.model_validate_json(got.content).code) == (500, "internal")
    assert "hunter2" not in got.text


async def test_a_sandbox_that_hangs_up_does_not_undo_its_checkpoint(house):
    began, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(runtime_id, body):
        began.set()
        await go.wait()
        done.set()

    house.gateway._checkpoint = slow
    client = await house.runtime()
    request = asyncio.create_task(client.post("/turns/req_1/checkpoint", content=checkpoint()))
    await began.wait()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    go.set()
    async with asyncio.timeout(60):
        await done.wait()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("POST", "/v1/completions"),
        ("GET", CHAT),
        ("POST", "/v1/models"),
        ("GET", "/turns/req_1/checkpoint"),
        ("POST", "/turns//checkpoint/x"),
        ("POST", "/v1/embeddings"),
    ],
)
async def test_everything_else_is_404(house, method, path):
    client = await house.runtime()
    got = await client.request(method, path)
    assert got.status_code == 404
    body = got.json()
    said = body["error"] if path.startswith("/v1/") else body  # there as the dialect's clients read it
    assert said["code"] == "no_such_path"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b'{"messages": 1}',
        b'{"messages": [], "model": 1}',
        b'{"messages": [], "model": ""}',
        b'{"messages": [], "n": 0}',
        b'{"messages": [], "max_tokens": "9"}',
        b'{"messages": [], "max_tokens": -1}',
        b'{"messages": [], "max_tokens": true}',
        b'{"messages": [], "stream_options": 5}',
        b'{"messages": [], "n": 99999999999999999999999}',
        b"[" * 100_000,
        b'{"messages": [], "model": "\xff"}',
    ],
)
async def test_what_is_no_request_is_400(house, upstream, body):
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, content=body, headers=naming())
    assert (got.status_code, got.json()["code"], got.json()["error"]["code"]) == (
        400,
        "invalid_request",
        "invalid_request",
    )
    assert upstream.asked == []


@pytest.mark.parametrize("messages", [[], [1], [None], [{"content": [1, {"image_url": {"url": 1}}]}], [{"role": []}]])
async def test_messages_are_the_providers_business(house, upstream, messages):
    upstream.script = answering(delta("x", "stop"), DONE)
    client = await house.runtime()
    await house.turn()
    got = await client.post(CHAT, json={"messages": messages, "stream": True}, headers=naming())
    assert got.status_code == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_request_over_its_limit_is_413(build, upstream, chunked):
    house = await build(max_request=10_000)
    client = await house.runtime()
    await house.turn()
    body = json.dumps(ask("x" * 20_000)).encode()

    async def parts():
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    got = await client.post(CHAT, content=parts() if chunked else body, headers=naming())
    assert (got.status_code, got.json()["code"]) == (413, "too_large")
    assert upstream.asked == []


async def test_a_body_that_does_not_arrive_is_408_and_takes_no_place(build, upstream, monkeypatch):
    upstream.script = answering(delta("x", "stop"), DONE)
    monkeypatch.setattr(bodies_module, "_MAX_BODY_SECONDS", 0.5)
    house = await build(max_concurrent_calls=1)
    await house.turn()
    reader, writer = await asyncio.open_unix_connection(await house.listeners.open("run_1"))
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Amplifier-Turn: req_1\r\nContent-Length: 99\r\n\r\n{"
    )
    client = await house.runtime("run_1")
    assert (await client.post(CHAT, json=ask(), headers=naming())).status_code == 200
    assert b"408" in await reader.readline()
    writer.close()


async def test_bodies_of_one_runtime_hold_only_so_much_memory(build, monkeypatch):
    monkeypatch.setattr(bodies_module, "MAX_HELD_BYTES", 30_000)
    house = await build()
    await house.turn()
    path = await house.listeners.open("run_1")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Amplifier-Turn: req_1\r\nContent-Length: 20000\r\n\r\n"
    first, second = await asyncio.open_unix_connection(path), await asyncio.open_unix_connection(path)
    first[1].write(head + b"x" * 19_999)
    await asyncio.sleep(0.05)
    second[1].write(head + b"x" * 19_999)
    assert b"503" in await second[0].readline()
    first[1].write(b"x")
    assert b"400" in await first[0].readline()
    first[1].close()
    second[1].close()


def test_a_runtime_that_floods_is_read_no_faster_than_it_can_be_parsed():
    ingress = bodies_module._Ingress(credited_at=0.0)
    waited, sent, now = 0.0, 0, 0.0
    while sent < 1024 * 1024 * 1024:
        delay = ingress.delay_seconds(1024 * 1024, now)
        now += delay
        waited += delay
        sent += 1024 * 1024
    assert waited == pytest.approx((1024 - 64) / 16, abs=1)


async def test_models_are_listed_by_name_and_owner(house):
    client = await house.runtime()
    got = (await client.get("/v1/models")).json()
    assert [(one["id"], one["owned_by"]) for one in got["data"]] == [("default", "amplifier"), ("m", "up"), ("n", "up")]
