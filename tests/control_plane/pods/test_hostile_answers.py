"""What the control plane asks of runtimes, answered with garbage: it costs its tenant, and nobody else."""

import asyncio
import io
import zipfile

import pytest

from amplifier_api_server.control_plane.pods import reconciler as reconciler_module
from amplifier_api_server.control_plane.router.errors import RouterError
from amplifier_api_server.tenants.ids import RuntimeId, SessionId
from amplifier_api_server.tenants.repository.pages import Page
from amplifier_api_server.tenants.repository.sessions import Wanted
from tests.hostile_runtime import Attacked, Request, attacked


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


async def endless_head(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        await request.say(b"x" * 60_000)


async def endless_reason(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 ")
    while True:
        await request.say(b"x" * 60_000)


async def endless_trailer(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Long: ")
    while True:
        await request.say(b"x" * 60_000)


async def endless_extension(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    while True:
        await request.say(b"x" * 60_000)


async def endless_body(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n")
    while True:
        await request.say(b"x" * 60_000)


async def interim(request: Request) -> None:
    while True:
        await request.say(b"HTTP/1.1 100 Continue\r\n\r\n")


async def many_values(request: Request) -> None:
    await request.reply(200, {"plan": {"a": [[]] * 100_000}, "model": "m", "tool": "bash", "status": "completed"})


async def deep(request: Request) -> None:
    body = b'{"plan": ' + b'{"a":' * 400 + b"1" + b"}" * 400 + b', "model": "m"}'
    await request.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def failure(request: Request) -> None:
    body = b'{"code": "' + b"A" * 100_000 + b'", "detail": "' + b"d" * 10_000 + b'", "retry_after_seconds": 1e300}'
    await request.say(b"HTTP/1.1 599 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


GARBAGE = [
    endless_head, endless_reason, endless_trailer, endless_extension, endless_body, interim, many_values, deep, failure
]  # fmt: skip


@pytest.mark.parametrize("behaviour", GARBAGE)
@pytest.mark.parametrize("asked", ["create", "tool", "install", "close"])
async def test_garbage_is_an_error_of_the_one_who_asked(plane, behaviour, asked):
    session_id = await plane.session()
    for one in (("PUT", "session"), ("POST", "tool"), ("POST", "inspect"), ("DELETE", "session")):
        plane.fleet.answers[one] = behaviour
    async with plane.client() as client, asyncio.timeout(60):
        answer = await ask(client, asked, session_id)
        assert answer.status_code in (204, 404, 422, 503), answer.text[:500]
        assert len(answer.content) < 10_000
        for held in plane.app.services.fleet.sessions.values():
            assert held.keys() <= {session_id}
        plane.fleet.answers.clear()
        assert (await client.post("/v1/sessions", json={"profile": "foundation:base"})).status_code == 201


async def ask(client, asked, session_id):
    match asked:
        case "create":
            return await client.post("/v1/sessions", json={"profile": "foundation:base"})
        case "tool":
            return await client.post("/v1/tools/bash/execute", json={"input": {}})
        case "install":
            return await client.post(
                "/v1/collections", content=zipped("a"), headers={"content-type": "application/zip"}
            )
        case _:
            return await client.delete(f"/v1/sessions/{session_id}")


def zipped(text: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("pyproject.toml", text)
    return made.getvalue()


async def test_a_failed_create_leaves_no_place_taken(plane):
    async with plane.client() as client:
        before = (await client.get("/v1/limits")).json()["limits"]
        plane.fleet.answers["PUT", "session"] = deep
        for _ in range(3):
            assert (await client.post("/v1/sessions", json={"profile": "foundation:base"})).status_code == 503
        after = (await client.get("/v1/limits")).json()["limits"]
    held = {one["name"]: one["holders"] for one in after if "sessions" in one["name"]}
    assert held == {one["name"]: one["holders"] for one in before if "sessions" in one["name"]}


async def drip(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await request.say(b"x")
        await asyncio.sleep(0.05)


async def drip_body(request: Request) -> None:
    await request.say(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    while True:
        await request.say(b"x")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("behaviour", [drip, drip_body])
async def test_an_answer_that_drips_is_given_up_in_time(plane, behaviour):
    session_id = await plane.session()
    plane.fleet.answers["GET", "health"] = behaviour
    fleet = plane.app.services.fleet
    runtime_id = next(one for one, held in fleet.sessions.items() if session_id in held)
    with pytest.raises(RouterError):
        await fleet.calls.health(fleet.address(runtime_id), 0.4)


async def test_passes_go_on_while_a_runtime_answers_no_ping(plane, monkeypatch):
    monkeypatch.setattr(reconciler_module, "_PING_TIMEOUT_SECONDS", 600.0)
    await plane.session()
    plane.fleet.answers["GET", "health"] = drip
    reconciler = plane.app.services.reconciler
    async with asyncio.timeout(60):
        for _ in range(3):
            reconciler._pinged_at = None
            await reconciler.run_pass()


async def test_all_tenants_are_told_only_what_a_runtime_of_nobody_says(plane):
    await plane.session()

    async def poison(request: Request) -> None:
        claimed = RuntimeId(request.runtime.runtime_id) in plane.app.services.fleet.tenants
        tools = [{"name": "claimed" if claimed else "bash", "description": "", "input_schema": {}}]
        await request.reply(200, {"profiles": [], "tools": tools})

    plane.fleet.answers["GET", "catalog"] = poison
    catalogue = plane.app.services.catalogue
    for _ in range(3):
        catalogue._bundled = None
        assert [tool.name for tool in await catalogue.tools()] == ["bash"]


async def test_without_a_warm_pool_the_catalogue_starts_a_runtime(tmp_path):
    async with attacked(tmp_path, warm=0) as plane:
        assert await plane.session()


async def test_a_runtime_is_let_go_of_though_its_end_could_not_be_told(plane, monkeypatch):
    session_id = await plane.session()
    fleet = plane.app.services.fleet
    runtime_id = next(one for one, held in fleet.sessions.items() if session_id in held)

    async def broken(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(fleet, "on_gone", broken)
    with pytest.raises(OSError, match="disk"):
        await fleet.end(runtime_id, "for the test")
    assert runtime_id not in fleet.tenants
    assert runtime_id not in fleet.sessions
    held = await plane.app.services.admission.backend.snapshot()
    assert not held.get("sandboxes")


def seen_by(plane: Attacked, session_id: str) -> list[str]:
    """What its runtime was asked, without pings."""
    homes = plane.app.services.fleet.sessions
    runtime_id = next(one for one, held in homes.items() if session_id in held)
    return [one for one in plane.fleet.runtimes[runtime_id].seen if one != "GET health"]


async def test_a_turn_that_begins_while_its_session_is_leaving_waits_and_opens_it_again(plane, monkeypatch):
    session_id = SessionId(await plane.session())
    residency = plane.app.services.turns._residency
    tenant_id = next(iter(plane.app.services.fleet.tenants.values()))
    leave, is_leaving, go = residency._leave, asyncio.Event(), asyncio.Event()

    async def slowly(*args):
        is_leaving.set()
        await go.wait()
        await leave(*args)

    monkeypatch.setattr(residency, "_leave", slowly)
    suspending = asyncio.create_task(residency.suspend(tenant_id, session_id))
    await is_leaving.wait()
    execute = asyncio.create_task(plane.execute(session_id))
    while not plane.app.services.turns.live.all():
        await asyncio.sleep(0.01)
    go.set()
    assert await suspending
    assert (await execute).status_code == 200
    assert seen_by(plane, session_id)[-3:] == ["DELETE session", "PUT session", "POST turn"]


async def test_a_turn_whose_session_was_suspended_as_it_was_recorded_opens_it_again(plane, monkeypatch):
    session_id = SessionId(await plane.session())
    turns = plane.app.services.turns
    tenant_id = next(iter(plane.app.services.fleet.tenants.values()))
    record = turns._record

    async def recorded_and_suspended(turn, *more):
        await record(turn, *more)
        assert await turns._residency.suspend(tenant_id, session_id)

    monkeypatch.setattr(turns, "_record", recorded_and_suspended)
    assert (await plane.execute(session_id)).status_code == 200
    assert seen_by(plane, session_id)[-3:] == ["DELETE session", "PUT session", "POST turn"]


async def test_a_list_of_sessions_does_not_read_what_sandboxes_stored(plane):
    """A page of two hundred sessions would be two hundred plans and states, each as large as a sandbox may make it."""

    async def large(request: Request) -> None:
        await request.reply(200, {"plan": {"a": "x" * 400_000}, "model": "m"})

    plane.fleet.answers["PUT", "session"] = large
    await plane.session()
    tenant_id = next(iter(plane.app.services.fleet.tenants.values()))
    (row,) = await plane.app.services.sessions.page(tenant_id, Wanted(), Page(10))
    assert not {"plan", "state"} & row.__dict__.keys()
    async with plane.client() as client:
        listed = (await client.get("/v1/sessions")).json()["sessions"]
    assert [one["status"] for one in listed] == ["active"]
