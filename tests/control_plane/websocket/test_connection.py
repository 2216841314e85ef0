"""One connection: who is there, what is too much, how it ends, and that nothing of it stays."""

import asyncio
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplifier_api_server.control_plane.websocket.messages import CLIENT_MESSAGES
from amplifier_api_server.control_plane.websocket.table import CALLABLE
from tests.control_plane.websocket.test_messages import values


async def test_the_limits_are_asked_with_every_message(door):
    async with door.plane.client(door.plane.operator_key) as operator:
        made = (
            await operator.post(
                "/v1/tenants", json={"name": "slow", "tier": "free", "limits": {"requests_per_minute": 3}}
            )
        ).json()
    async with door.known(made["admin_key"]) as wire:
        answers = [await wire.ask("session.list") for _ in range(6)]
        assert [one["type"] for one in answers[:3]] == ["sessions"] * 3
        assert (answers[-1]["type"], answers[-1]["status"]) == ("error", 429)
        assert answers[-1]["retry_after_seconds"] >= 1
        assert (await wire.ask("ping"))["type"] == "pong", "which takes nothing"
        async with door.plane.client(door.plane.operator_key) as operator:
            changed = await operator.patch(
                f"/v1/tenants/{made['id']}", json={"limits": {"requests_per_minute": 100_000}}
            )
            assert changed.status_code == 200, changed.text
        assert (await wire.ask("session.list"))["type"] == "sessions", "new limits hold from the next message"


async def test_a_message_that_fails_before_its_service_took_its_limits_counts_all_the_same(door):
    async with door.plane.client(door.plane.operator_key) as operator:
        made = (
            await operator.post(
                "/v1/tenants", json={"name": "slow", "tier": "free", "limits": {"requests_per_minute": 3}}
            )
        ).json()
    async with door.known(made["admin_key"]) as wire:
        answers = [await wire.ask("session.create", profile="nobody:has-it") for _ in range(4)]
        assert [one["status"] for one in answers] == [404, 404, 404, 429]
    async with door.known(door.key) as wire:
        assert (await wire.ask("execute", session_id="sess_x", prompt="hi"))["status"] == 404


async def test_a_key_that_is_revoked_ends_what_is_open_with_it(door):
    async with door.plane.client(door.key) as admin:
        made = (await admin.post("/v1/keys", json={"name": "k", "role": "developer"})).json()
        async with door.known(made["key"]) as wire, door.known() as other:
            await admin.delete(f"/v1/keys/{made['id']}")
            assert await wire.closed() == 4403
            assert (await other.ask("ping"))["type"] == "pong"


async def test_what_a_key_opened_is_not_kept_open_with_a_lesser_one(door):
    async with door.plane.client(door.key) as admin:
        made = (await admin.post("/v1/keys", json={"name": "k", "role": "developer"})).json()
        body = {"name": "less", "role": "reader", "member_id": made["member_id"]}
        await admin.post("/v1/roles", json={"name": "reader", "permissions": ["sessions:read"]})
        less = (await admin.post("/v1/keys", json=body)).json()
        async with door.known(made["key"]) as wire:
            await wire.ask("events.subscribe")
            refused = await wire.ask("auth", token=less["key"])
            assert (refused["type"], refused["code"]) == ("error", "access_ended"), refused
            await admin.delete(f"/v1/keys/{made['id']}")
            assert await wire.closed() == 4403


async def test_a_suspended_tenant_is_let_in_no_more(door):
    async with door.plane.client(door.plane.operator_key) as operator:
        made = (await operator.post("/v1/tenants", json={"name": "B", "tier": "pro"})).json()
        async with door.known(made["admin_key"]) as wire:
            await operator.patch(f"/v1/tenants/{made['id']}", json={"status": "suspended"})
            assert await wire.closed() == 4403
        async with door.connected() as wire:
            assert (await wire.ask("auth", token=made["admin_key"]))["status"] == 403
            assert await wire.closed() == 4403
        async with door.connected({"x-api-key": made["admin_key"]}) as wire:
            assert await wire.closed() is None
            assert wire.denied["status"] == 403


async def test_a_connection_that_ends_leaves_nothing(door):
    streams = door.plane.app.services.streams
    before = len(streams.all())
    async with door.known() as wire:
        await wire.ask("events.subscribe")
        assert len(streams.all()) == before + 1
    assert len(streams.all()) == before
    assert not door.plane.app.websocket._open
    assert not door.plane.app.services.followers._by_tenant


async def test_more_messages_than_may_be_in_work_are_refused(door, monkeypatch):
    held = asyncio.Event()
    uses = door.plane.app.websocket._uses

    async def work(connection, principal, message, given):
        await held.wait()
        connection.answer("sessions", message.id, {})

    monkeypatch.setattr(door.plane.app.websocket, "_uses", _replaced(uses, work=work))
    async with door.known() as wire:
        for count in range(33):
            wire.say("session.list", id=count)
        refused = await wire.hear()
        assert (refused["id"], refused["code"], refused["status"]) == (32, "too_many_requests", 429)
        assert (await wire.ask("ping"))["type"] == "pong"
        held.set()
        assert {(await wire.hear())["id"] for _ in range(32)} == set(range(32))


def _replaced(uses, **changes):
    from dataclasses import replace

    return replace(uses, **changes)


async def test_a_mistake_of_ours_is_one_answer(door, monkeypatch):
    async def work(connection, principal, message, given):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(door.plane.app.websocket, "_uses", _replaced(door.plane.app.websocket._uses, work=work))
    async with door.known() as wire:
        answer = await wire.ask("session.list", id="x")
        assert (answer["id"], answer["status"], answer["code"]) == ("x", 500, "internal")
        assert "secret" not in str(answer)
        assert (await wire.ask("ping"))["type"] == "pong"


async def test_an_error_names_what_its_message_was_about(door):
    about = {"session_id": "sess_none", "request_id": "req_none"}
    asked = {"attach": about, "cancel": about, "approvals.list": about, "detach": {"request_id": "req_none"}}
    async with door.known() as wire:
        for kind, members in asked.items():
            answer = await wire.ask(kind, id=kind, **members)
            assert (answer["type"], answer["id"], answer["status"]) == ("error", kind, 404)
            assert answer["request_id"] == "req_none"
        refused = await wire.ask("session.get", id=1, session_id="sess_none")
        assert (refused["session_id"], "request_id" in refused) == ("sess_none", False)


async def test_messages_are_taken_no_faster_than_they_may_come(door, monkeypatch):
    uses = door.plane.app.websocket._uses
    slow = uses.settings.model_copy(update={"messages_per_second": 20})
    monkeypatch.setattr(door.plane.app.websocket, "_uses", _replaced(uses, settings=slow))
    async with door.known() as wire:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(40):
            wire.say("ping")
        for _ in range(40):
            await wire.hear()
        assert loop.time() - begun > 0.9


async def test_what_a_client_asked_for_is_done_also_when_it_leaves(door):
    async with door.known() as wire:
        wire.say("session.create", profile="foundation:base")
        await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while door.plane.app.websocket._tasks:
            await asyncio.sleep(0.01)
    async with door.known() as wire:
        assert len((await wire.ask("session.list"))["sessions"]) == 1


async def test_a_draining_server_ends_idle_connections_and_lets_nobody_in(door):
    async with door.known() as wire:
        door.plane.app.websocket.drain()
        assert await wire.closed() == 1001
    async with door.connected() as wire:
        assert await wire.closed() is None
        assert wire.denied["status"] == 503


async def test_no_parameter_leads_to_another_operation(wire):
    """Names that are, or lead to, other paths: what runs is what the caller was let in for."""
    for name in ("installations", "../keys", "a/b", "a%2Fb", "", ".", "..", "x" * 200, "a?b=c", "a\nb", None, 5, ["a"]):
        answer = await wire.ask("call", operation="getCollection", params={"name": name})
        assert answer["type"] == "error", name
        assert answer["status"] in {404, 422}, name
    answer = await wire.ask("call", operation="listKeys", params={"limit": {"a": 1}})
    assert answer["status"] == 422
    for operation in ("health", "graphql", "execute", "streamExecution", "exportAuditEntries", "nothing"):
        assert (await wire.ask("call", operation=operation))["code"] == "no_such_operation"


# A browser's cookie.


class Logins:
    """Takes the cookie `login=good` for the tenant's admin."""

    def __init__(self, authenticator, key):
        self._authenticator = authenticator
        self._key = key

    def carried_in(self, headers):
        found = [value for name, value in headers if name == b"cookie"]
        return found[0].removeprefix(b"login=") if found else None

    async def principal_of(self, given):
        assert given == b"good"
        return await self._authenticator.principal_of(self._key)

    async def still(self, principals):
        return list(principals)

    def forget(self, is_meant):
        pass

    async def close(self):
        pass


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        ("http://localhost:8000", True),
        ("https://app.example.com", True),
        ("https://evil.example.com", False),
        ("http://localhost:8001", False),
        ("https://localhost:8000", False),
        ("*", False),
        ("null", False),
        (None, False),
    ],
)
async def test_a_cookie_speaks_for_pages_of_our_own_and_of_named_origins_alone(door, monkeypatch, origin, is_let_in):
    services = door.plane.app.services
    monkeypatch.setattr(services.authenticator, "logins", Logins(services.authenticator, door.key))
    cors = services.settings.cors.model_copy(update={"allowed_origins": ("https://app.example.com", "*")})
    monkeypatch.setattr(door.plane.app.websocket, "settings", services.settings.model_copy(update={"cors": cors}))
    headers = {"cookie": "login=good"} | ({"origin": origin} if origin is not None else {})
    async with door.connected(headers) as wire:
        if is_let_in:
            assert (await wire.hear())["type"] == "auth.ok"
        else:
            wire.say("session.list")
            assert (await wire.hear())["status"] == 401
            assert await wire.closed() == 4401


# Anything at all.

names = sorted({name for model in CLIENT_MESSAGES.values() for name in model.model_fields} - {"type"})
ids = st.sampled_from(["sess_x", "req_x", "apr_x", "x", ""]) | st.text(string.printable, max_size=12) | values
asked = st.sampled_from(sorted(CALLABLE)) | values
members = st.dictionaries(st.sampled_from(names), ids, max_size=6) | st.fixed_dictionaries(
    {
        "operation": asked,
        "params": st.dictionaries(st.sampled_from(["name", "session_id", "limit", "cursor"]), ids, max_size=3),
    },
    optional={"body": values},
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(sorted(CLIENT_MESSAGES)), members), min_size=1, max_size=4))
def test_no_message_is_our_mistake(fuzzed, sent):
    fuzzed(sent)


@pytest.fixture
def fuzzed(tmp_path):
    """Sends messages on a connection, and looks at the answers. One plane for all of them."""
    from tests.control_plane.websocket.conftest import Door
    from tests.hostile_runtime import attacked

    with asyncio.Runner() as runner:
        context = attacked(tmp_path)
        plane = runner.run(context.__aenter__())
        made = Door(plane, plane.key)

        async def send(sent):
            async with made.known() as wire:
                for kind, more in sent:
                    wire.say(**{**more, "kind": kind, "id": "asked"}) if "kind" not in more else None
                wire.say("ping", id="last")
                while (answer := await wire.hear()).get("id") != "last":
                    assert answer.get("code") != "internal", (sent, answer)
                while made.plane.app.websocket._tasks:
                    await asyncio.sleep(0)

        yield lambda sent: runner.run(send(sent))
        runner.run(context.__aexit__(None, None, None))
