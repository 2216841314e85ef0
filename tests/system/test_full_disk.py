"""A disk that is nearly full, and one that is full: tenants wait, the operator makes room, all goes on. On a real one."""

import json
import subprocess
import sys
import threading

import pytest

from tests.small_disk import MIB, fill, free_bytes, small_disk
from tests.system.server import FREE, Server, eventually

FLOOR = {
    "AMPLIFIER_SANDBOX__MIN_FREE_DISK": "24MiB",
    "AMPLIFIER_SANDBOX__MIN_FREE_FILES": "300",
    "AMPLIFIER_SANDBOX__WARM": "1",
}
COMMAND = "from amplifier_api_server.control_plane.cli import app; app()"
SLOWLY = (
    "python3 -c \"import time\nfile = open('slow', 'ab', 0)\nwhile True: file.write(b'x' * 100_000); time.sleep(0.2)\""
)


@pytest.fixture
def server(tmp_path):
    with small_disk(tmp_path / "disk", mib=96) as disk:
        one = Server(disk / "data", FLOOR)
        try:
            yield one.start()
        finally:
            one.end()


def ready(server):
    answer = server.caller().call("GET", "/ready")
    return answer.status, " ".join(answer.json["missing"])


def test_below_the_floor_growers_are_ended_tenants_wait_and_reads_go_on(server):
    me = server.tenant(**FREE)
    session = me.session()
    with me.stream(session, f"use bash {json.dumps({'command': SLOWLY})}") as stream:
        next(one for one in stream if one.name == "tool_call")
        ballast = fill(server.data_dir.parent, leave_bytes=23 * MIB)
        assert eventually(
            lambda: any(one["event"] == "a tool's process was killed" for one in server.logged("warning"))
        )
        assert free_bytes(server.data_dir) > 21 * MIB
        for path, body in [
            ("/v1/sessions", {"profile": "foundation:base"}),
            (f"/v1/sessions/{session}/fork", {}),
            ("/v1/tools/bash/execute", {"input": {"command": "true"}}),
            ("/v1/keys", {"name": "one", "role": "admin"}),
        ]:
            answer = me.call("POST", path, body)
            assert (answer.status, answer.code) == (507, "disk_full"), path
            assert answer.headers["retry-after"] == "30"
        status, missing = ready(server)
        assert status == 503
        assert "sandbox.min_free_disk asks for 24.0 MiB" in missing
        assert me.get(f"/v1/sessions/{session}")["session_id"] == session
    assert me.call("DELETE", f"/v1/sessions/{session}").status == 204
    ballast.unlink()
    assert eventually(lambda: ready(server)[0] == 200)
    assert me.ask(me.session(), "hello")["response"]


def test_on_a_full_disk_the_operator_looks_suspends_deletes_and_frees_and_then_all_goes_on(server):
    me, operator = server.tenant(**FREE), server.operator()
    session = me.session()
    me.shell(session, "head -c 9000000 /dev/urandom > mine")
    waiting = me.session()
    answers = []
    slow = f"use bash {json.dumps({'command': 'sleep 3'})}"
    caller = threading.Thread(target=lambda: answers.append(me.execute(waiting, slow)))
    caller.start()
    assert eventually(lambda: me.get(f"/v1/sessions/{waiting}/executions")["executions"])
    ballast = fill(server.data_dir.parent, leave_bytes=0)
    assert free_bytes(server.data_dir) == 0
    tenant = f"/v1/tenants/{me.tenant_id}"
    assert operator.get(tenant)["status"] == "active"
    assert operator.call("PATCH", tenant, {"status": "suspended"}).status == 200
    caller.join(120)
    assert answers, "an execution whose server has no room is answered in bounded time"
    cli = [sys.executable, "-c", COMMAND, "tenants", "delete", me.tenant_id, "--data-dir", str(server.data_dir)]
    done = subprocess.run(
        [*cli, "--yes"], env=server_environment(server), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    workspaces = server.data_dir / "workspaces"
    assert eventually(lambda: not [*workspaces.glob("*/*")] and not [*(server.data_dir / "trash").iterdir()])
    assert free_bytes(server.data_dir) > 8 * MIB
    ballast.unlink()
    assert eventually(lambda: len([*(server.data_dir / "reserve").iterdir()]) == 8)
    assert eventually(lambda: ready(server)[0] == 200)
    other = server.tenant("next", **FREE)
    assert other.ask(other.session(), "hello")["response"]


def server_environment(server):
    import os

    return {**os.environ, **server.environment}


def test_a_turn_whose_end_finds_no_room_is_answered_as_such_and_recorded_as_failed_later(server):
    """Without any reserve: it was given up before."""
    me = server.tenant(**FREE)
    me.timeout_seconds = 90
    session = me.session()
    answers = []
    slow = f"use bash {json.dumps({'command': 'sleep 2'})}"
    caller = threading.Thread(target=lambda: answers.append(me.execute(session, slow)))
    caller.start()
    running = eventually(lambda: me.get(f"/v1/sessions/{session}/executions")["executions"])
    disk = server.data_dir.parent
    ballast = [fill(disk, leave_bytes=0)]
    for piece in (server.data_dir / "reserve").iterdir():
        piece.unlink()
    ballast.append(fill(disk, leave_bytes=0))
    caller.join(120)
    assert [(one.status, one.code) for one in answers] == [(507, "disk_full")]
    for one in ballast:
        one.unlink()
    execution = running[0]["request_id"]
    assert eventually(lambda: me.execution(session, execution)["status"] == "failed")
    assert me.ask(session, "hello")["response"]
