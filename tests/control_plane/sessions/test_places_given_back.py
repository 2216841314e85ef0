"""A session has its place among the active ones for as long as a runtime has it open, whichever way it comes and goes."""

import asyncio

import pytest

from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.tenants.lifecycle import RuntimeStatus
from tests.hostile_runtime import attacked, complete


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


def home_of(plane, session):
    return plane.app.services.turns._residency.home(session)[0]


async def places(plane):
    """How many sessions are active, as the member's limit and the tenant's count them."""
    held = await plane.app.services.admission.backend.snapshot()
    return [held.get(name, 0) for name in ("concurrent_sessions", "tenant_concurrent_sessions")]


async def status_after_all_is_done(plane, me, session):
    """The session's status, once what the end of its turn began beside the request has been done."""
    while tasks := plane.app.services.endings._tasks:
        await asyncio.wait(tasks)
    return (await me.get(f"/v1/sessions/{session}")).json()["status"]


async def end_unseen(plane, runtime_id, *, is_noticed):
    """End a runtime, and keep the reconciler from seeing it: whoever comes to its sessions is there first.

    `is_noticed`: its launcher knows already, and has no address of it any more.
    """
    launcher = plane.app.services.fleet.launcher
    launcher.unseen.add(runtime_id)
    launcher._entries[runtime_id].running = not is_noticed
    await launcher._entries[runtime_id].stop()


async def test_a_session_taken_out_of_a_dead_sandbox_before_its_end_was_seen_gives_its_place_back(plane, me):
    session, runs = await plane.session(), asyncio.Event()

    async def run_on(request):
        runs.set()
        await request.hang()

    plane.fleet.answers["POST", "turn"] = run_on
    execution = asyncio.create_task(plane.execute(session))
    await runs.wait()
    assert await places(plane) == [1, 1]
    await end_unseen(plane, home_of(plane, session), is_noticed=True)
    assert (await execution).json()["code"] == "runtime_lost"
    assert await status_after_all_is_done(plane, me, session) == "suspended"
    assert await places(plane) == [0, 0]


async def test_a_session_taken_out_of_a_sandbox_that_refused_its_turn_gives_its_place_back(plane, me):
    session = await plane.session()
    plane.fleet.answers["POST", "turn"] = lambda request: request.reply(500)
    assert (await plane.execute(session)).json()["code"] == "runtime_refused"
    assert await status_after_all_is_done(plane, me, session) == "suspended"
    assert await places(plane) == [0, 0]


async def test_a_session_whose_files_are_copied_sleeps_meanwhile_and_gives_its_place_back(plane, me):
    session = await plane.session()
    assert (await plane.execute(session)).status_code == 200
    made = await me.post(f"/v1/sessions/{session}/fork", json={"files": True})
    assert made.status_code == 201, made.text
    assert (await me.get(f"/v1/sessions/{session}")).json()["status"] == "suspended"
    assert await places(plane) == [0, 0]


async def test_a_session_taken_out_of_a_draining_sandbox_gives_its_place_back(plane, me):
    idle, busy, runs = await plane.session(), await plane.session(), asyncio.Event()

    async def run_on(request):
        runs.set()
        await request.hang()

    plane.fleet.answers["POST", "turn"] = run_on
    execution = asyncio.create_task(plane.execute(busy))
    await runs.wait()
    fleet = plane.app.services.fleet
    draining = home_of(plane, busy)
    assert home_of(plane, idle) == draining
    await fleet.set_status(draining, RuntimeStatus.CLAIMED, RuntimeStatus.DRAINING)
    fleet.wake()
    async with asyncio.timeout(60):
        while await places(plane) != [1, 1]:
            await asyncio.sleep(0.01)
    assert (await me.get(f"/v1/sessions/{idle}")).json()["status"] == "suspended"
    await fleet.end(draining, "drained")
    assert (await execution).json()["code"] == "runtime_lost"
    assert await places(plane) == [0, 0]


async def test_a_session_that_moves_to_another_sandbox_with_its_turn_keeps_its_place(plane):
    session, counted = await plane.session(), []
    await end_unseen(plane, home := home_of(plane, session), is_noticed=False)

    async def count(request):
        counted.append((request.runtime.runtime_id, await places(plane)))
        await complete(request)

    plane.fleet.answers["POST", "turn"] = count
    assert (await plane.execute(session)).status_code == 200
    ((runtime_id, held),) = counted
    assert runtime_id != home
    assert held == [1, 1]


async def test_a_folder_that_is_not_given_back_keeps_no_other_session_of_the_sandbox_active(plane, monkeypatch):
    first, second = await plane.session(), await plane.session()
    fleet = plane.app.services.fleet
    runtime_id = home_of(plane, first)
    assert home_of(plane, second) == runtime_id
    detach = fleet.launcher.detach

    async def refuse_the_first(runtime_id, tenant_id, session_id):
        if session_id == first:
            raise LaunchError("busy")
        await detach(runtime_id, tenant_id, session_id)

    monkeypatch.setattr(fleet.launcher, "detach", refuse_the_first)
    await fleet.end(runtime_id, "killed")
    assert await places(plane) == [0, 0]
