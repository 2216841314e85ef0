"""Executions in the background: they are answered at once, go on by themselves, and end as any other does."""

import asyncio
import json

import pytest

from amplifier_api_server.control_plane.sessions import endings
from tests.hostile_runtime import NOTHING, attacked, complete


@pytest.fixture
async def plane(tmp_path):
    async with attacked(tmp_path) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


async def started(me, session, **more):
    answer = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True, **more})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


async def until(check, within_seconds=10):
    """What `check` says, once that is true."""
    async with asyncio.timeout(within_seconds):
        while not (found := await check()):
            await asyncio.sleep(0.01)
    return found


async def ended(me, where):
    async def look():
        view = (await me.get(where)).json()
        return view if view["status"] != "running" else None

    return await until(look)


async def settled(plane):
    async def look():
        return (await plane.left()) == NOTHING

    await until(look)


async def asleep(plane, me):
    """A session that no runtime has open."""
    session = await plane.session()
    services = plane.app.services
    tenant_id = next(iter(services.fleet.tenants.values()))
    assert await services.turns._residency.suspend(tenant_id, session)
    assert (await me.get(f"/v1/sessions/{session}")).json()["status"] == "suspended"
    return session


class Waking:
    """Holds every session's opening until `go`."""

    def __init__(self, plane):
        self.go, self.asked, self.refusal = asyncio.Event(), asyncio.Event(), None
        plane.fleet.answers["PUT", "session"] = self._open

    async def _open(self, request):
        self.asked.set()
        await self.go.wait()
        if self.refusal is not None:
            await request.reply(*self.refusal)
        else:
            await request.reply(200, {"plan": {"a": 1}, "model": "m"})


async def test_it_is_answered_before_its_session_has_woken_and_says_where_it_is(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    answer = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
    assert (answer.status_code, answer.json()["status"], answer.json()["session_id"]) == (202, "running", session)
    assert answer.headers["location"] == f"/v1/sessions/{session}/executions/{answer.json()['request_id']}"
    assert "x-ratelimit-limit" in answer.headers
    assert (await me.get(answer.headers["location"])).json()["status"] == "running"
    waking.go.set()
    view = await ended(me, answer.headers["location"])
    assert (view["status"], view["response"], view["request_id"]) == ("completed", "done", answer.json()["request_id"])
    await settled(plane)


async def test_its_events_can_be_read_from_before_its_session_has_woken(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    reading = asyncio.create_task(me.get(f"{where}/events"))
    await waking.asked.wait()
    waking.go.set()
    text = (await reading).text
    assert text.count("event: complete") == 1
    assert (await me.get(f"{where}/events")).text == text
    await settled(plane)


async def test_a_reader_that_leaves_while_it_wakes_leaves_nothing_behind(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    messages = asyncio.Queue()
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"{where}/events",
        "raw_path": f"{where}/events".encode(),
        "headers": [(b"x-api-key", plane.key.encode())],
        "query_string": b"",
    }

    async def send(message):
        raise AssertionError(f"nobody is there for {message}")

    reading = asyncio.create_task(plane.app.asgi(scope, messages.get, send))
    await waking.asked.wait()
    assert not reading.done()
    await messages.put({"type": "http.disconnect"})
    await asyncio.wait_for(reading, 60)
    assert plane.app.services.streams.all() == []
    waking.go.set()
    await ended(me, where)


async def test_a_reader_whose_key_is_revoked_while_it_wakes_is_told_so(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    made = (await me.post("/v1/keys", json={"name": "k", "role": "readonly"})).json()
    async with plane.client(made["key"]) as other:
        reading = asyncio.create_task(other.get(f"{where}/events"))
        while not plane.app.services.streams.all():
            await asyncio.sleep(0.005)
        await me.delete(f"/v1/keys/{made['id']}")
        assert (await asyncio.wait_for(reading, 60)).status_code == 401
    waking.go.set()
    await ended(me, where)


async def test_one_that_is_cancelled_while_its_session_wakes_never_begins(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    await waking.asked.wait()
    answer = await me.post(f"{where}/cancel")
    assert answer.json()["status"] == "cancelled"
    waking.go.set()
    assert (await me.get(where)).json()["problem"]["code"] == "turn_cancelled"
    await settled(plane)
    assert not any(one == "POST turn" for runtime in plane.fleet.runtimes.values() for one in runtime.seen)
    assert (await plane.execute(session)).status_code == 200


async def test_a_session_that_does_not_wake_is_how_it_ended(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    waking.refusal = 422, {"code": "module_failed", "detail": "tool-x is not what it was"}
    where = await started(me, session)
    waking.go.set()
    view = await ended(me, where)
    assert (view["status"], view["problem"]["code"]) == ("failed", "module_failed")
    assert "event: error" in (await me.get(f"{where}/events")).text
    await settled(plane)
    limits = {one["name"]: one["used"] for one in (await me.get("/v1/limits")).json()["limits"]}
    assert (limits["concurrent_sessions"], limits["tokens_per_day"]) == (0, 0)


async def test_a_second_one_meanwhile_is_refused_and_takes_nothing(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    again = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
    assert (again.status_code, again.json()["code"]) == (409, "turn_running")
    waking.go.set()
    await ended(me, where)
    await settled(plane)


async def test_one_whose_server_stops_while_its_session_wakes_has_failed(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    await waking.asked.wait()
    await plane.app.services.turns.drain(0.05)
    view = await ended(me, where)
    assert (view["status"], view["problem"]["code"]) == ("failed", "stopping")
    refused = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
    assert (refused.status_code, refused.json()["code"]) == (503, "stopping")
    waking.go.set()
    await settled(plane)


async def test_it_goes_on_when_whoever_began_it_has_no_key_any_more(plane, me):
    session = await asleep(plane, me)
    waking = Waking(plane)
    made = (await me.post("/v1/keys", json={"name": "k", "role": "developer"})).json()
    async with plane.client(made["key"]) as other:
        where = await started(other, session)
    await me.delete(f"/v1/keys/{made['id']}")
    waking.go.set()
    assert (await ended(me, where))["status"] == "completed"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"stream": True, "background": True}, "exclude each other"),
        ({"background": "yes"}, "background"),
        ({"background": True, "callback": "https://example.org"}, "callback"),
        ({"background": True, "callback": {"url": "https://example.org", "more": 1}}, "callback"),
    ],
)
async def test_a_request_that_makes_no_sense_is_refused_and_says_why(plane, me, body, said):
    session = await plane.session()
    answer = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", **body})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert said in json.dumps(answer.json())


async def test_another_tenants_sessions_do_not_exist_for_it(plane, me):
    session = await plane.session()
    async with plane.client(plane.operator_key) as operator:
        made = await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})
    async with plane.client(made.json()["admin_key"]) as other:
        answer = await other.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "background": True})
        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
        where = await started(me, session)
        await ended(me, where)
        assert (await other.get(where)).status_code == 404
        assert (await other.get(f"{where}/events")).status_code == 404
        assert (await other.post(f"{where}/cancel")).status_code == 404


async def test_cancelling_one_that_has_not_begun_costs_no_time_and_expels_nobody(plane, me, monkeypatch):
    monkeypatch.setattr(endings, "_CANCEL_SECONDS", 60)
    session = await asleep(plane, me)
    waking = Waking(plane)
    where = await started(me, session)
    async with asyncio.timeout(60):
        assert (await me.post(f"{where}/cancel")).json()["status"] == "cancelled"
    waking.go.set()

    async def awake():
        return (await me.get(f"/v1/sessions/{session}")).json()["status"] == "active"

    await until(awake)
    plane.fleet.answers["POST", "turn"] = complete
    assert (await plane.execute(session)).status_code == 200
