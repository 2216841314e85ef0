"""Who loses the right to read stops reading, long before what is read ends; who gets it back goes on."""

from tests.system.server import FREE, Caller, eventually

EXPECTED_ERRORS = ("runtime_lost",)


def test_a_revoked_keys_streams_end(server, me):
    made = me.call("POST", "/v1/keys", {"name": "x", "role": "developer"}).json
    other = Caller(server.port, made["key"])
    session = other.session()
    with other.stream(session, "stream 2000 at 40/s") as stream:
        request_id = stream.take(3)[0].request_id
        with me.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as mine:
            assert me.call("DELETE", f"/v1/keys/{made['id']}").status == 204
            stream.cut()
            answer = other.call("GET", "/v1/sessions")
            assert (answer.status, answer.code) == (401, "unauthenticated")
            assert next(mine), "who still may, reads on"
    assert me.execution(session, request_id)["status"] == "running"
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_rotated_key_works_on_for_its_overlap_and_no_longer(server, me):
    made = me.call("POST", "/v1/keys", {"name": "x", "role": "developer"}).json
    old = Caller(server.port, made["key"])
    session = old.session()
    with old.stream(session, "stream 2000 at 40/s") as stream:
        request_id = next(stream).request_id
        rotated = me.call("POST", f"/v1/keys/{made['id']}/rotate", {"overlap": 4})
        assert rotated.status == 201
        new = Caller(server.port, rotated.json["key"])
        assert old.call("GET", "/v1/sessions").status == new.call("GET", "/v1/sessions").status == 200
        assert new.ask(new.session(), "same member")["response"]
        stream.cut()
    assert old.call("GET", "/v1/sessions").status == 401
    assert new.call("GET", "/v1/sessions").status == 200
    new.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_suspended_tenant_is_shut_out_and_comes_back(server):
    tenant = server.tenant(**FREE)
    operator, path = server.operator(), f"/v1/tenants/{tenant.tenant_id}"
    session = tenant.session()
    tenant.ask(session, "remember the plover")
    pid = server.runtime_of(session)
    with tenant.stream(session, "stream 2000 at 40/s") as stream:
        stream.take(3)
        assert operator.call("PATCH", path, {"status": "suspended"}).status == 200
        assert not [event for event in stream.rest() if event.name == "complete"]
    assert eventually(lambda: pid not in server.runtimes()), "its sandboxes end"
    for method, where in (
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions"),
        ("GET", "/v1/limits"),
        ("POST", f"/v1/sessions/{session}/execute"),
    ):
        answer = tenant.call(method, where, {"prompt": "x"} if method == "POST" else None)
        assert (answer.status, answer.code) == (403, "tenant_suspended"), where

    assert operator.call("PATCH", path, {"status": "active"}).status == 200
    assert eventually(lambda: tenant.call("GET", "/v1/sessions").status == 200)
    assert "plover" in tenant.texts(session)
    assert tenant.ask(session, "and now?")["response"]
    assert tenant.limit("tokens_per_day")["reserved"] == 0


def test_a_deleted_tenant_is_gone(server):
    tenant = server.tenant(**FREE)
    session = tenant.session()
    with tenant.stream(session, "stream 2000 at 40/s") as stream:
        next(stream)
        assert server.operator().call("DELETE", f"/v1/tenants/{tenant.tenant_id}").status == 204
        stream.rest()
    assert tenant.call("GET", "/v1/sessions").status in (401, 403)
    assert server.operator().call("GET", f"/v1/tenants/{tenant.tenant_id}").status == 404


def test_a_key_expires(server, me):
    from datetime import UTC, datetime, timedelta

    until = datetime.now(UTC) + timedelta(seconds=1.5)
    made = me.call("POST", "/v1/keys", {"name": "x", "role": "developer", "expires_at": until.isoformat()})
    assert made.status == 201, made.body
    other = Caller(server.port, made.json["key"])
    session = other.session()
    with other.stream(session, "stream 2000 at 40/s") as stream:
        request_id = next(stream).request_id
        stream.cut()
    assert other.call("GET", "/v1/sessions").status == 401
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")
