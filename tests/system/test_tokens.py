"""People of an identity provider on a real server: they come in by their tokens, work, and stop when they may no more."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime

import pytest

from tests.control_plane.auth.issuer import AUDIENCE, issuing
from tests.system.server import FREE, Caller, eventually

EXPECTED_ERRORS = ("runtime_lost",)


@pytest.fixture(scope="module")
def issuer():
    """An issuer in a thread of its own, for as long as the module runs."""
    begun, over, found = threading.Event(), threading.Event(), []

    async def serve():
        async with issuing() as one:
            found.append(one)
            begun.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert begun.wait(60)
    yield found[0]
    over.set()
    thread.join(60)


@pytest.fixture(scope="module")
def settings(issuer):
    method = {"type": "bearer", "issuer": issuer.url, "audience": AUDIENCE, "leeway": "0s"}
    return {"AMPLIFIER_AUTH__METHODS": json.dumps([{"type": "api_key"}, method])}


class Bearer(Caller):
    """A caller by a token."""

    def __init__(self, port: int, token: str) -> None:
        super().__init__(port, None)
        self.token = token

    def _send(self, method, path, body, headers):
        return super()._send(method, path, body, {"Authorization": f"Bearer {self.token}", **headers})


def bearer(server, issuer, tenant: Caller, **claims) -> Bearer:
    given = {"tenant_id": tenant.tenant_id, "roles": ["developer"], **claims}
    return Bearer(server.port, issuer.token(datetime.now(UTC), **given))


def test_somebody_works_by_a_token_and_goes_on_by_the_next_one(server, issuer, me):
    ada = bearer(server, issuer, me, sub="ada", name="Ada")
    assert ada.get("/v1/me")["member"]["name"] == "Ada"
    session = ada.session()
    assert "plover" in ada.ask(session, "say plover")["response"]
    again = bearer(server, issuer, me, sub="ada", jti="2")
    assert [one["session_id"] for one in again.get("/v1/sessions")["sessions"]] == [session]
    listed = me.get("/v1/members")["members"]
    assert ("Ada", "developer") in [(one["name"], one["role"]) for one in listed]


def test_a_token_s_streams_end_with_it(server, issuer, me):
    session = bearer(server, issuer, me, sub="short", jti="1").session()
    ada = bearer(server, issuer, me, sub="short", jti="2", exp=int(time.time()) + 5)
    with ada.stream(session, "stream 2000 at 40/s") as stream:
        request_id = next(stream).request_id
        stream.cut()
    assert (answer := ada.call("GET", "/v1/me")).status == 401
    assert answer.code == "token_expired"
    again = bearer(server, issuer, me, sub="short", jti="3")
    assert again.execution(session, request_id)["status"] == "running", "the turn itself goes on"
    again.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_disabled_member_stops_reading_by_token_and_by_key(server, issuer, me):
    ada = bearer(server, issuer, me, sub="disabled")
    member_id = ada.get("/v1/me")["member"]["id"]
    made = me.call("POST", "/v1/keys", {"name": "ada's", "role": "developer", "member_id": member_id}).json
    by_key = Caller(server.port, made["key"])
    session = ada.session()
    with ada.stream(session, "stream 2000 at 40/s") as stream:
        request_id = next(stream).request_id
        with by_key.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as theirs:
            next(theirs)
            assert me.call("PATCH", f"/v1/members/{member_id}", {"status": "disabled"}).status == 200
            stream.cut()
            theirs.cut()
    for caller in (ada, by_key):
        assert (answer := caller.call("GET", "/v1/sessions")).status == 403
        assert answer.code == "member_disabled"
    assert me.call("PATCH", f"/v1/members/{member_id}", {"status": "active"}).status == 200
    assert eventually(lambda: ada.call("GET", "/v1/sessions").status == 200)
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_who_has_a_role_that_holds_less_stops_reading(server, issuer, me):
    permissions = ["sessions:*", "profiles:read", "models:read"]
    assert me.call("POST", "/v1/roles", {"name": "worker", "permissions": permissions}).status == 201
    ada = bearer(server, issuer, me, sub="worker", roles=["worker"])
    session = ada.session()
    with ada.stream(session, "stream 2000 at 40/s") as stream:
        request_id = next(stream).request_id
        assert me.call("PATCH", "/v1/roles/worker", {"permissions": ["sessions:read"]}).status == 200
        stream.cut()
    assert ada.get("/v1/me")["grants"] == ["limits:read", "me:read", "sessions:read"]
    assert ada.execute(session, "more").status == 403
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_suspended_tenant_s_people_are_told_so(server, issuer):
    tenant = server.tenant(**FREE)
    ada = bearer(server, issuer, tenant, sub="suspended")
    session = ada.session()
    with ada.stream(session, "stream 2000 at 40/s") as stream:
        next(stream)
        path = f"/v1/tenants/{tenant.tenant_id}"
        assert server.operator().call("PATCH", path, {"status": "suspended"}).status == 200
        stream.cut()
    assert (answer := ada.call("GET", "/v1/me")).status == 403
    assert answer.code == "tenant_suspended"
