"""Members who are removed, disabled or may do less stop reading within a second; what they began goes on."""

import subprocess
import sys

import pytest

from tests.system.server import Caller


def made(answer):
    assert answer.status == 201, answer.json
    return answer.json


def member_with_key(me, role):
    bot = made(me.call("POST", "/v1/members", {"name": "bot", "role": role}))
    return bot["id"], made(me.call("POST", "/v1/keys", {"name": "k", "role": role, "member_id": bot["id"]}))["key"]


@pytest.mark.parametrize(
    ("method", "body", "status", "code"),
    [
        ("DELETE", None, 401, "unauthenticated"),
        ("PATCH", {"status": "disabled"}, 403, "member_disabled"),
        ("PATCH", {"role": "readonly"}, 403, "forbidden"),
    ],
)
def test_what_a_member_has_open_ends_and_its_turn_goes_on(server, me, method, body, status, code):
    member_id, key = member_with_key(me, "developer")
    other = Caller(server.port, key)
    session = other.session()
    with other.stream(session, "stream 2000 at 40/s") as stream:
        request_id = stream.take(3)[0].request_id
        with me.open("GET", f"/v1/sessions/{session}/executions/{request_id}/events") as mine:
            assert me.call(method, f"/v1/members/{member_id}", body).status in (200, 204)
            stream.cut()
            assert next(mine), "who still may, reads on"
    refused = other.call("POST", f"/v1/sessions/{session}/execute", {"prompt": "x"})
    assert (refused.status, refused.code) == (status, code)
    assert me.execution(session, request_id)["status"] == "running"
    assert me.call("GET", f"/v1/sessions/{session}").json["status"] == "active", "the session stays the tenant's"
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_role_that_holds_less_ends_what_those_who_have_it_have_open(server, me):
    made(me.call("POST", "/v1/roles", {"name": "worker", "permissions": ["sessions:*"]}))
    _, key = member_with_key(me, "worker")
    worker = Caller(server.port, key)
    session = worker.session()
    with worker.stream(session, "stream 2000 at 40/s") as stream:
        request_id = stream.take(3)[0].request_id
        assert me.call("PATCH", "/v1/roles/worker", {"permissions": ["usage:read"]}).status == 200
        stream.cut()
    assert worker.call("GET", "/v1/usage").status == 200
    refused = worker.call("GET", f"/v1/sessions/{session}/executions/{request_id}/events")
    assert (refused.status, refused.code) == (403, "forbidden")
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")


def test_a_member_who_is_disabled_from_the_command_line_stops_reading_too(server, me):
    member_id, key = member_with_key(me, "developer")
    other = Caller(server.port, key)
    session = other.session()
    with other.stream(session, "stream 2000 at 40/s") as stream:
        request_id = stream.take(3)[0].request_id
        arguments = ["members", "disable", member_id, "--tenant", me.tenant_id, "--data-dir", str(server.data_dir)]
        command = (
            f"import sys; from amplifier_api_server.control_plane.cli import app; sys.argv[1:] = {arguments!r}; app()"
        )
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        stream.cut()
    assert other.call("GET", "/v1/sessions").code == "member_disabled"
    me.call("POST", f"/v1/sessions/{session}/executions/{request_id}/cancel")
