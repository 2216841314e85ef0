"""Callbacks: whoever asked for it is told when an execution has ended, at least once, whatever happens meanwhile."""

import asyncio
import json
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from amplifier_api_server.control_plane.egress import addresses
from amplifier_api_server.control_plane.sessions import callbacks
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Turn, TurnCallback
from tests.hostile_runtime import attacked
from tests.receiver import KEY, SECRET, Receiver


@pytest.fixture
def receiver():
    with Receiver() as one:
        yield one


@pytest.fixture
async def plane(tmp_path, receiver):
    async with attacked(tmp_path, callbacks={"private_hosts": [receiver.host], "retry_delay": "10ms"}) as one:
        yield one


@pytest.fixture
async def me(plane):
    async with plane.client() as client:
        yield client


async def called_back(me, session, url, *, background=True, **more):
    """Where the execution is that was begun with a callback."""
    body = {"prompt": "hi", "background": background, "callback": {"url": url, **more}}
    answer = await me.post(f"/v1/sessions/{session}/execute", json=body)
    assert answer.status_code in (200, 202), answer.text
    return f"/v1/sessions/{session}/executions/{answer.json()['request_id']}"


async def told(me, where, *statuses):
    """The execution, once its callback has come so far."""
    async with asyncio.timeout(60):
        while True:
            view = (await me.get(where)).json()
            if view["callback"]["status"] in (statuses or ("delivered", "failed")):
                return view
            await asyncio.sleep(0.01)


async def rows(plane):
    async with plane.app.services.database.read() as db:
        return list((await db.execute(select(TurnCallback))).scalars())


@pytest.mark.parametrize("background", [True, False])
async def test_the_execution_as_it_ended_is_sent_signed(plane, me, receiver, background):
    session = await plane.session()
    where = await called_back(me, session, receiver.url, secret=SECRET, background=background)
    view = await told(me, where)
    assert view["callback"] == {"url": receiver.url, "status": "delivered", "attempts": 1, "problem": ""}
    (received,) = receiver.received
    assert received.is_signed_with(KEY)
    assert received.json == {name: value for name, value in view.items() if name != "callback"}
    assert (received.json["status"], received.json["response"]) == ("completed", "done")


async def test_a_secret_is_stored_sealed_and_forgotten_once_it_is_of_no_use(plane, me, receiver):
    async def wait(request):
        await request.hang()

    plane.fleet.answers["POST", "turn"] = wait
    session = await plane.session()
    where = await called_back(me, session, receiver.url, secret=SECRET)
    (row,) = await rows(plane)
    assert row.status == "waiting"
    assert row.secret
    assert SECRET.encode() not in row.secret
    assert SECRET not in json.dumps((await me.get(where)).json())
    await me.post(f"{where}/cancel")
    view = await told(me, where)
    assert (receiver.received[0].json["status"], view["status"]) == ("cancelled", "cancelled")
    assert (await rows(plane))[0].secret is None


async def test_a_failed_attempt_is_made_again_with_the_same_id(plane, me, receiver):
    receiver.statuses += [500, 302]
    view = await told(me, await called_back(me, await plane.session(), receiver.url))
    assert (view["callback"]["status"], view["callback"]["attempts"]) == ("delivered", 3)
    assert len({one.headers["webhook-id"] for one in receiver.received}) == 1
    assert len({one.body for one in receiver.received}) == 1


async def test_one_that_never_succeeds_is_given_up_and_says_why(plane, me, receiver):
    receiver.statuses += [500] * 20
    view = await told(me, await called_back(me, await plane.session(), receiver.url))
    assert view["callback"] == {
        "url": receiver.url,
        "status": "failed",
        "attempts": 6,
        "problem": "it was answered with 500",
    }
    assert len(receiver.received) == 6


async def test_a_failed_execution_is_told_too_also_one_that_did_not_begin(plane, me, receiver):
    async def refuse(request):
        await request.reply(422, {"code": "module_failed", "detail": "no"})

    session = await plane.session()
    services = plane.app.services
    await services.turns._residency.suspend(next(iter(services.fleet.tenants.values())), session)
    plane.fleet.answers["PUT", "session"] = refuse
    await told(me, await called_back(me, session, receiver.url))
    assert receiver.received[0].json["problem"]["code"] == "module_failed"


@pytest.mark.parametrize(
    "callback",
    [
        {"url": "http://example.org/"},
        {"url": "https://localhost:9/"},
        {"url": "https://localhost/"},
        {"url": "https://10.0.0.1/"},
        {"url": "https://[::1]:8443/"},
        {"url": "https://u:p@example.org/"},
        {"url": "not an address"},
        {"url": "https://example.org/", "secret": "short"},
    ],
)
async def test_what_can_not_be_called_is_refused_before_anything_runs(plane, me, callback):
    session = await plane.session()
    answer = await me.post(f"/v1/sessions/{session}/execute", json={"prompt": "hi", "callback": callback})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_callback")
    assert callback.get("secret", "-") not in answer.text
    assert await rows(plane) == []
    assert (await me.get(f"/v1/sessions/{session}/executions")).json()["executions"] == []


async def test_an_address_inside_is_never_asked(plane, me, receiver, monkeypatch):
    """Its name passes; what it leads to does not."""

    async def inside(host, port):
        return ["127.0.0.1"]

    monkeypatch.setattr(plane.app.services.callbacks._sender._client, "resolve", inside)
    monkeypatch.setattr(addresses, "_RESOLVE_SECONDS", 0.05)  # how long each attempt takes to be refused
    view = await told(me, await called_back(me, await plane.session(), "https://innocent.example:8443/x"))
    assert (view["callback"]["status"], view["callback"]["attempts"]) == ("failed", 6)
    assert view["callback"]["problem"] == "its host was not found at a public address"
    assert receiver.received == []


async def test_what_was_due_when_the_server_ended_is_sent_by_the_next_one(tmp_path, receiver):
    """The rows are all there is: another outbox over the same database goes on."""
    settings = {"callbacks": {"private_hosts": [receiver.host], "retry_delay": "10ms"}}
    async with attacked(tmp_path, **settings) as plane, plane.client() as me:
        for task in plane.app._background:
            task.cancel()
        where = await called_back(me, await plane.session(), receiver.url, secret=SECRET)
        await told(me, where, "due")
        again = asyncio.create_task(plane.app.services.callbacks.run())
        try:
            await told(me, where, "delivered")
        finally:
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)
    assert receiver.received[0].is_signed_with(KEY)


async def test_an_attempt_that_nobody_told_the_end_of_counts_and_the_last_is_not_made_again(plane, me, receiver):
    receiver.statuses += [500] * 3
    where = await called_back(me, await plane.session(), receiver.url)
    await told(me, where, "delivered")
    services = plane.app.services
    async with services.database.write() as db:  # as a server leaves it that ended in the midst of the last attempt
        gone = services.clock.now() - timedelta(seconds=1)
        await db.execute(update(TurnCallback).values(status="due", attempts=6, next_at=gone, finished_at=None))
    services.callbacks.wake()
    view = await told(me, where)
    assert (view["callback"]["status"], view["callback"]["problem"]) == (
        "failed",
        "the server ended in the middle of the last attempt",
    )
    assert len(receiver.received) == 4


async def test_one_tenants_slow_receiver_does_not_keep_anothers_waiting(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr(callbacks, "_OF_A_TENANT", 2)
    goes_on = threading.Event()
    with Receiver(before=lambda: goes_on.wait(60)) as slow:
        settings = {"private_hosts": [receiver.host, slow.host], "max_concurrent": 4}
        async with attacked(tmp_path, callbacks=settings) as plane, plane.client() as me:
            for _ in range(6):
                await called_back(me, await plane.session(), slow.url)
            async with plane.client(plane.operator_key) as operator:
                made = await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})
            async with plane.client(made.json()["admin_key"]) as other:
                session = (await other.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]
                await told(other, await called_back(other, session, receiver.url))
            assert len(slow.received) <= 2, "the others wait until the first two are answered"
            goes_on.set()


async def test_a_stopped_tenant_is_not_told(plane, me, receiver):
    async with plane.client(plane.operator_key) as operator:
        made = (await operator.post("/v1/tenants", json={"name": "other", "tier": "enterprise"})).json()
        async with plane.client(made["admin_key"]) as other:
            session = (await other.post("/v1/sessions", json={"profile": "foundation:base"})).json()["session_id"]

            async def wait(request):
                await request.hang()

            plane.fleet.answers["POST", "turn"] = wait
            await called_back(other, session, receiver.url)
        assert (await operator.patch(f"/v1/tenants/{made['id']}", json={"status": "suspended"})).status_code == 200

    async def given_up():
        return [one for one in await rows(plane) if one.status == "failed"]

    async with asyncio.timeout(60):
        while not (found := await given_up()):
            await asyncio.sleep(0.02)
    assert found[0].problem == "the tenant is not active"
    assert receiver.received == []


async def test_where_they_are_switched_off_they_are_refused(tmp_path):
    async with attacked(tmp_path, callbacks={"enabled": False}) as plane, plane.client() as me:
        session = await plane.session()
        body = {"prompt": "hi", "callback": {"url": "https://example.org/"}}
        answer = await me.post(f"/v1/sessions/{session}/execute", json=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "callbacks_disabled")


async def test_an_execution_that_is_too_large_to_send_is_cut_and_says_so(plane, me, receiver, monkeypatch):
    monkeypatch.setattr(callbacks, "MAX_BODY_BYTES", 200)
    monkeypatch.setattr(callbacks, "_CUT_RESPONSE_CHARS", 2)
    await told(me, await called_back(me, await plane.session(), receiver.url))
    sent = receiver.received[0].json
    assert (sent["response"], sent["tool_calls"], sent["is_cut"]) == ("do", [], True)


async def test_a_callback_of_a_key_that_is_lost_is_given_up_and_logged(plane, me, receiver):
    async def wait(request):
        await request.hang()

    plane.fleet.answers["POST", "turn"] = wait
    where = await called_back(me, await plane.session(), receiver.url, secret=SECRET)
    async with plane.app.services.database.write() as db:
        (row,) = (await db.execute(select(TurnCallback))).scalars()
        row.secret = row.secret[:-1] + bytes([row.secret[-1] ^ 1])
    await me.post(f"{where}/cancel")
    view = await told(me, where)
    assert view["callback"]["problem"].startswith("its secret can't be read")
    assert receiver.received == []


async def test_a_turn_and_its_callback_are_recorded_together_or_not_at_all(plane, me, receiver, monkeypatch):
    session = await plane.session()

    async def fails(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(callbacks.callbacks, "add", fails)
    body = {"prompt": "hi", "background": True, "callback": {"url": receiver.url}}
    assert (await me.post(f"/v1/sessions/{session}/execute", json=body)).status_code == 500
    async with plane.app.services.database.read() as db:
        assert list((await db.execute(select(Turn))).scalars()) == []
    monkeypatch.undo()
    await told(me, await called_back(me, session, receiver.url))


async def test_another_tenants_callback_is_not_found(plane, me, receiver):
    where = await called_back(me, await plane.session(), receiver.url)
    view = await told(me, where)
    uses = plane.app.services.callbacks
    assert await uses.of_turn(TenantId("ten_other"), view["session_id"], view["request_id"]) is None
    async with plane.app.services.database.read() as db:
        found = select(TurnCallback).where(col(TurnCallback.turn_id) == view["request_id"])
        assert (await db.execute(found)).scalar_one().tenant_id != "ten_other"
