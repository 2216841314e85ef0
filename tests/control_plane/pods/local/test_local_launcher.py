"""The local launcher, on the suite that all launchers pass, and in what is its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import process
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.control_plane.pods.limits import RUNTIME_PROGRAM
from amplifier_api_server.tenants.ids import new_runtime_id, new_session_id, new_tenant_id
from tests.control_plane.pods.launcher_suite import LauncherSuite, observed, woken
from tests.control_plane.pods.local.conftest import Host, require_sandboxes


class TestSandboxed(LauncherSuite):
    @pytest.fixture
    async def kit(self, host: Host) -> Host:
        return host


class TestUnsandboxed(LauncherSuite):
    @pytest.fixture
    async def kit(self, data_dir: Path) -> AsyncIterator[Host]:
        one = Host(data_dir, mode="none")
        yield one
        await one.close()

    async def test_its_environment_is_empty_but_for_what_the_protocol_names(self, kit: Host) -> None:
        runtime = await kit.started()
        done = await kit.python(runtime, "import os; print(*sorted(os.environ))")
        assert set(done.output.split()) - {"LC_CTYPE", "AMPLIFIER_GROUPS"} == {
            *("AMPLIFIER_COLLECTIONS", "AMPLIFIER_GATEWAY_PATH", "AMPLIFIER_LISTEN_FD", "AMPLIFIER_WORKSPACE"),
            *("HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"),
        }

    async def test_what_it_started_ends_with_it(self, kit: Host) -> None:
        runtime = await kit.started()
        done = await kit.shell(runtime, "sleep 1000 & echo $!")
        left = process.identify(int(done.output))
        assert left is not None
        await kit.launcher.stop(runtime, "done")
        # Nobody waits for an orphan but the system: it is gone when its number no longer answers.
        for _ in range(1000):
            if not process.is_alive(left):
                break
            await asyncio.sleep(0.005)
        assert not process.is_alive(left)


async def test_a_program_that_ends_is_a_launch_error_with_its_words(host: Host) -> None:
    host.server(program="raise SystemExit('the reason it gives')")
    runtime = new_runtime_id()
    with pytest.raises(LaunchError, match="the reason it gives"):
        await host.launcher.start(runtime)
    assert await host.launcher.list() == []


async def test_a_program_that_never_answers_is_ended_after_the_timeout(host: Host) -> None:
    host.server(program="import threading; threading.Event().wait()", start_timeout="300ms")
    with pytest.raises(LaunchError, match=r"0\.3 s"):
        await host.launcher.start(new_runtime_id())
    assert await host.launcher.list() == []


async def test_a_program_that_answers_badly_is_a_launch_error(host: Host) -> None:
    program = """
import os, socket
connection, _ = socket.socket(fileno=int(os.environ["AMPLIFIER_LISTEN_FD"])).accept()
connection.recv(65536)
connection.sendall(b"HTTP/1.1 503 Not Today\\r\\n\\r\\n")
"""
    host.server(program=program)
    with pytest.raises(LaunchError, match="503 Not Today"):
        await host.launcher.start(new_runtime_id())


async def test_no_gateway_is_a_launch_error(host: Host) -> None:
    host.launcher._gateway_path = lambda _: "/nonexistent/gateway"
    with pytest.raises(LaunchError, match="/nonexistent/gateway"):
        await host.launcher.start(new_runtime_id())
    assert await host.launcher.list() == []


async def test_nothing_starts_below_the_floor_of_free_disk(host: Host) -> None:
    host.server(min_free_disk=2**60)
    with pytest.raises(LaunchError, match="min_free_disk"):
        await host.launcher.start(new_runtime_id())


async def test_a_start_that_is_given_up_leaves_nothing(host: Host) -> None:
    runtime = new_runtime_id()
    starting = asyncio.create_task(host.launcher.start(runtime))
    while not host.launcher._starting:
        await asyncio.sleep(0)
    seen = await observed(host.launcher, runtime)
    assert seen is not None
    assert seen.running is None
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await host.launcher.list() == []


async def test_a_runtime_reaches_its_gateway_and_only_its_own(host: Host) -> None:
    runtime = await host.started()
    await host.started()
    script = """
import os, socket
gateway = socket.socket(socket.AF_UNIX)
gateway.connect(f"/proc/self/fd/{os.environ['AMPLIFIER_GATEWAY_FD']}")
gateway.sendall(b"hello")
print(gateway.recv(100).decode())
"""
    asking = asyncio.create_task(host.module(runtime, script))
    listener = host.gateways[runtime]
    listener.setblocking(False)
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    with connection:
        connection.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(connection, 100) == b"hello"
        await asyncio.get_running_loop().sock_sendall(connection, b"welcome")
        assert (await asking).output == "welcome\n"


async def test_stop_gives_time_to_end_and_then_takes_it(host: Host) -> None:
    runtime = await host.started()
    sandbox = host.sandbox(runtime)
    await host.shell(runtime, "(trap '' TERM; sleep 1000) &")
    await host.launcher.stop(runtime, "time is up", grace_seconds=0.2)
    assert sandbox.ended.is_set()
    assert not process.is_alive(sandbox.root)


async def test_a_runtime_that_a_tool_has_frozen_is_ended_all_the_same(host: Host) -> None:
    runtime = await host.started()
    sandbox = host.sandbox(runtime)
    os.kill(sandbox.main.pid, signal.SIGSTOP)
    await host.launcher.stop(runtime, "it does not answer", grace_seconds=0.1)
    assert not process.is_alive(sandbox.main)


async def test_the_reason_of_an_end_is_kept(host: Host) -> None:
    wakes = woken(host.launcher)
    runtime = await host.started()
    os.kill(host.sandbox(runtime).main.pid, signal.SIGSEGV)
    await asyncio.wait_for(wakes.get(), 60)
    seen = await observed(host.launcher, runtime)
    assert seen is not None
    assert "SIGSEGV" in seen.reason


async def test_killing_only_the_outer_process_ends_the_sandbox_too(host: Host) -> None:
    runtime = await host.started()
    sandbox = host.sandbox(runtime)
    os.kill(sandbox._started.pid, signal.SIGKILL)
    await asyncio.wait_for(sandbox.ended.wait(), 60)
    assert not process.is_alive(sandbox.root)
    assert not process.is_alive(sandbox.main)


async def test_a_flood_of_output_stops_nothing(host: Host) -> None:
    runtime = await host.started()
    await host.module(
        runtime,
        "import os, threading; threading.Thread(target=lambda: [os.write(2, b'x' * 65536) for _ in iter(int, 1)], daemon=True).start()",
    )
    for _ in range(20):
        assert await host.answers(runtime)
    await host.launcher.stop(runtime, "done")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give each runtime a user of its own")
async def test_no_two_live_runtimes_share_a_user(host: Host) -> None:
    runtimes = await asyncio.gather(*(host.started() for _ in range(4)))
    owners = {os.stat(f"/proc/{host.sandbox(one).main.pid}/status").st_uid for one in runtimes}
    users = {host.sandbox(one).uid for one in runtimes}
    assert len(users) == 4
    assert 0 not in users
    assert owners <= users | {0}  # a process that can't be read belongs to root in /proc


async def test_one_session_is_in_one_live_runtime_only(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    first, second = await host.started(), await host.started()
    await host.launcher.attach(first, tenant, session)
    with pytest.raises(LaunchError, match=first):
        await host.launcher.attach(second, tenant, session)


async def test_a_server_that_was_killed_leaves_its_sessions_to_the_next(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    await host.write(runtime, session, "file", "kept")
    sandbox = host.sandbox(runtime)
    os.kill(sandbox._started.pid, signal.SIGKILL)
    await asyncio.wait_for(sandbox.ended.wait(), 60)
    host.server()  # the earlier one never stopped it
    assert await host.launcher.list() == []
    second = await host.started()
    await host.launcher.attach(second, tenant, session)
    assert await host.read(second, session, "file") == "kept"


async def test_what_an_earlier_server_left_running_is_listed_and_can_be_stopped(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    await host.write(runtime, session, "file", "kept")
    sandbox = host.sandbox(runtime)
    earlier = host.launcher
    host.server()
    seen = await observed(host.launcher, runtime)
    assert seen is not None
    assert seen.running is True
    assert host.launcher.address(runtime) is None
    second = await host.started()
    await host.launcher.attach(second, tenant, session)  # takes it from the runtime that nobody can use any more
    assert await host.read(second, session, "file") == "kept"
    assert await observed(host.launcher, runtime) is None
    await asyncio.wait_for(sandbox.ended.wait(), 60)
    assert not process.is_alive(sandbox.root)
    await earlier.close()


async def test_the_real_runtime_answers_and_has_closed_itself_to_its_tools(host: Host) -> None:
    host.server(program=RUNTIME_PROGRAM)
    runtime = await host.started()
    assert await host.answers(runtime)
    # To the kernel the files in /proc of a process that can't be dumped are root's.
    assert os.stat(f"/proc/{host.sandbox(runtime).main.pid}/mem").st_uid == 0


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.control_plane.pods.local.conftest import Host

async def main():
    host = Host(Path(sys.argv[1]))
    runtime = await host.started()
    await host.launcher.attach(runtime, "ten_a", "sess_a")
    await host.write(runtime, "sess_a", "file", "kept")
    await host.shell(runtime, "setsid sleep 1000 > /dev/null 2>&1 &")
    sandbox = host.sandbox(runtime)
    print("processes", sandbox._started.pid, sandbox.root.pid, sandbox.main.pid, *(one.pid for one in sandbox.tools()), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_server_takes_its_sandboxes_along(data_dir: Path, number: signal.Signals) -> None:
    await require_sandboxes()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(data_dir)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4]
    )
    with server:
        lines = await asyncio.to_thread(lambda: next(line for line in server.stdout if line.startswith(b"processes")))
        pids = [int(pid) for pid in lines.split()[1:]]
        assert len(pids) == 4
        inside = [process.identify(pid) for pid in pids]
        assert None not in inside
        server.send_signal(number)
        await asyncio.to_thread(server.wait, 10)
    for _ in range(2000):
        if not any(process.is_alive(one) for one in inside):
            break
        await asyncio.sleep(0.005)
    assert not any(process.is_alive(one) for one in inside)
    host = Host(data_dir)
    assert await host.launcher.list() == []
    assert (data_dir / "workspaces" / "ten_a" / "sess_a" / "file").read_text() == "kept"
    await host.close()
