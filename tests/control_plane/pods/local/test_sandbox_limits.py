"""A sandbox's limits, reached by real programs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.disk import Floor
from amplifier_api_server.tenants.ids import RuntimeId, new_session_id, new_tenant_id
from tests.control_plane.pods.launcher_suite import observed, woken
from tests.control_plane.pods.local.conftest import Host

MIB = 1024 * 1024
SIGKILLED = (-9, 137)


async def ended(host: Host, wakes: asyncio.Queue[RuntimeId]) -> str:
    runtime = await asyncio.wait_for(wakes.get(), 60)
    seen = await observed(host.launcher, runtime)
    assert seen is not None
    assert seen.running is False
    return seen.reason


async def test_tools_that_eat_memory_together_are_killed_and_the_runtime_goes_on(host: Host) -> None:
    host.server(memory="256MiB")
    runtime = await host.started()
    # Four processes, since one alone is held by the kernel's limit of its data.
    script = """
import os, time
for _ in range(4):
    child = os.fork()
    if child == 0:
        break
if child == 0:
    eaten = bytearray(120 * 2**20)
    for place in range(0, len(eaten), 4096):
        eaten[place] = 1
    time.sleep(60)
print(os.wait()[1])
"""
    done = await host.python(runtime, script)
    assert done.output == "9\n", done
    assert await host.answers(runtime)


async def test_one_process_can_not_have_more_data_than_the_limit(host: Host) -> None:
    host.server(memory="256MiB")
    runtime = await host.started()
    done = await host.python(runtime, "bytearray(300 * 2**20)")
    assert "MemoryError" in done.error


async def test_shared_memory_that_no_watch_sees_is_refused(host: Host) -> None:
    host.server(cgroups="never")
    runtime = await host.started()
    done = await host.python(
        runtime,
        """
import mmap, os
for flags in (mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, 3 | mmap.MAP_ANONYMOUS):
    try:
        mmap.mmap(-1, 4096, flags)
        print("anonymous")
    except PermissionError:
        pass
zeros = os.open("/dev/zero", os.O_RDWR)
try:
    mmap.mmap(zeros, 4096, mmap.MAP_SHARED)
    print("mapped")
except OSError:
    pass
assert os.read(zeros, 4096) == bytes(4096)
mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)[0] = 1
""",
    )
    assert (done.status, done.output) == (0, ""), done


async def test_tools_whose_sockets_hold_too_much_memory_are_killed(host: Host) -> None:
    host.server(memory="128MiB", cgroups="never", files=4096)
    runtime = await host.started()
    done = await host.python(
        runtime,
        """
import socket, time
held = [socket.socketpair() for _ in range(1000)]
for pair in held:
    for one in pair:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * 2**20)
        one.setblocking(False)
        try:
            while True:
                one.send(bytes(65536))
        except BlockingIOError:
            pass
time.sleep(60)
""",
    )
    assert done.status in SIGKILLED, done
    assert await host.answers(runtime)


async def test_tools_whose_connections_hold_too_much_memory_are_killed(host: Host) -> None:
    host.server(memory="128MiB", cgroups="never")
    runtime = await host.started()
    done = await host.python(
        runtime,
        """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
held = []
for _ in range(200):
    one = socket.create_connection(listener.getsockname())
    held += [one, listener.accept()[0]]
    one.setblocking(False)
    try:
        while True:
            one.send(bytes(65536))
    except BlockingIOError:
        pass
time.sleep(60)
""",
    )
    assert done.status in SIGKILLED, done
    assert await host.answers(runtime)


PROGRAMS = {
    "python": "import multiprocessing as m; a = m.Array('i', [1, 2]); p = m.Process(target=a.__setitem__, args=(0, 5)); "
    "p.start(); p.join(); assert m.Pool(2).map(abs, [-1, -2]) == [1, 2] and a[0] == 5",
    "git": "git init -q . && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git gc -q",
    "gcc": "echo 'int main(void) { return 0; }' > x.c && gcc x.c -o x && ./x",
    "node": 'node -e \'new SharedArrayBuffer(65536); new (require("worker_threads").Worker)("1", {eval: true})\'',
    "java": "java -Xshare:auto -version",
}


@pytest.mark.parametrize("program", list(PROGRAMS))
async def test_usual_programs_work_without_shared_anonymous_memory(host: Host, program: str) -> None:
    if program != "python" and not Path(f"/usr/bin/{program}").exists():
        pytest.skip(f"{program} is not installed")
    host.server(cgroups="never", memory="2GiB")
    runtime = await host.started()
    done = await (host.python if program == "python" else host.shell)(runtime, f"{PROGRAMS[program]}")
    assert done.status == 0, done


async def test_a_runtime_that_eats_memory_itself_is_killed_and_says_why(host: Host) -> None:
    host.server(memory="128MiB")
    wakes = woken(host.launcher)
    runtime = await host.started()
    script = """
import threading, time
def eat():
    with open("/tmp/eaten", "wb") as file:
        for _ in range(60):
            file.write(bytes(2**20))
    memory = bytearray(50 * 2**20)  # too much together with the file, and not alone
    for place in range(0, len(memory), 4096):
        memory[place] = 1
    time.sleep(60)
threading.Thread(target=eat, daemon=True).start()
"""
    await host.module(runtime, script)
    assert await ended(host, wakes) == "killed: memory over 128 MiB"


async def test_temporary_folders_are_bounded(host: Host) -> None:
    host.server(tmp="2MiB")
    runtime = await host.started()
    for folder, most in (("/tmp", 2 * MIB), ("/dev/shm", 16 * MIB)):
        script = f"head -c 20000000 /dev/zero > {folder}/file; size=$(stat -c %s {folder}/file); rm {folder}/file; echo $size"
        done = await host.shell(runtime, script)
        assert 0 < int(done.output) <= most


async def test_one_file_is_bounded(host: Host) -> None:
    host.server(file_size="1MiB")
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    done = await host.shell(
        runtime, f"head -c 2000000 /dev/zero > /workspace/{session}/file; stat -c %s /workspace/{session}/file"
    )
    assert int(done.output) == MIB


async def test_a_tool_that_fills_the_disk_is_killed_and_its_files_can_be_deleted(host: Host) -> None:
    host.server(workspace="16MiB", file_size="4MiB")
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    done = await host.shell(
        runtime, f"cd /workspace/{session}; n=0; while :; do n=$((n+1)); head -c 4000000 /dev/urandom > file$n; done"
    )
    assert done.status in SIGKILLED, done
    done = await host.shell(runtime, f"cd /workspace/{session} && rm file* && ls -A | wc -l")
    assert (done.status, done.output) == (0, "0\n")
    assert await host.answers(runtime)


IN_A_SOCKET = """
    pair = socket.socketpair()
    kept.append(pair)
    socket.send_fds(pair[0], [b"x"], [file])
"""
IN_A_MAPPING = """
    mmap(None, 4096, 1, 1, file, 0)
"""


@pytest.mark.parametrize("keep", [IN_A_SOCKET, IN_A_MAPPING], ids=["in a socket", "in a mapping"])
async def test_files_without_a_name_that_no_table_has_count_for_the_workspace(host: Host, keep: str) -> None:
    """By what was written: they can be measured nowhere."""
    host.server(workspace="16MiB", file_size="4MiB")
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    done = await host.python(
        runtime,
        f"""
import ctypes, os, socket, time
mmap = ctypes.CDLL(None).mmap  # Python's own keeps a descriptor
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
os.chdir("/workspace/{session}")
file = os.open("probe", os.O_CREAT | os.O_RDWR)
os.write(file, b"1" * 65536)
if "\\nwrite_bytes: 0\\n" in open("/proc/self/io").read():
    raise SystemExit(99)  # a file system in memory
kept = []
for _ in range(16):
    file = os.open("file", os.O_CREAT | os.O_RDWR)
    os.unlink("file")
    os.write(file, os.urandom(4_000_000))
{keep}
    os.close(file)
time.sleep(60)
""",
    )
    if done.status == 99:
        pytest.skip("this file system does not count what processes write")
    assert done.status in SIGKILLED, done
    assert await host.answers(runtime)


async def test_a_runtime_that_fills_the_disk_itself_is_killed_and_says_why(host: Host) -> None:
    host.server(workspace="16MiB", file_size="4MiB")
    wakes = woken(host.launcher)
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    script = f"""
import itertools, os, threading, time
def fill():
    for number in itertools.count():
        with open(f"/workspace/{session}/{{number}}", "wb") as file:
            file.write(os.urandom(4_000_000))
        time.sleep(0.1)
threading.Thread(target=fill, daemon=True).start()
"""
    await host.module(runtime, script)
    assert (await ended(host, wakes)).startswith("killed: workspace over 16 MiB")


async def test_files_without_a_name_count_too(host: Host) -> None:
    host.server(workspace="16MiB", file_size="64MiB")
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    script = f"""
import os
file = open("/workspace/{session}/file", "wb")
os.unlink("/workspace/{session}/file")
while True:
    file.write(os.urandom(1_000_000))
    file.flush()
    if file.tell() > 60_000_000:
        file = open("/workspace/{session}/more", "wb")
        os.unlink("/workspace/{session}/more")
"""
    done = await host.python(runtime, script)
    assert done.status in SIGKILLED, done
    assert await host.answers(runtime)


def floor_above(host: Host) -> None:
    """From now on the machine's disk counts as nearly full."""
    host.launcher._watch.disk.floor = Floor(2**60, 0)


async def test_whoever_writes_when_the_machines_disk_is_nearly_full_is_killed(host: Host) -> None:
    runtime, session = await host.started(), new_session_id()
    other = await host.started()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    floor_above(host)
    done = await host.shell(runtime, f"cd /workspace/{session}; while :; do head -c 4000000 /dev/urandom > file; done")
    assert done.status in SIGKILLED, done
    assert await host.answers(runtime)
    assert await host.answers(other)


@pytest.mark.parametrize("grow", ["head -c 40000 /dev/zero >> file", "mktemp -p .; mktemp -p .; mktemp -p ."])
async def test_whoever_adds_little_by_little_to_a_nearly_full_disk_is_killed(host: Host, grow: str) -> None:
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    floor_above(host)
    done = await host.shell(runtime, f"cd /workspace/{session}; while :; do {grow}; sleep 0.1; done")
    assert done.status in SIGKILLED, done
    folder = host.data_dir / "runtimes" / runtime / "workspace" / session
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2 * 1024**2
    assert len([*folder.iterdir()]) < 300
    assert await host.answers(runtime)


async def test_a_session_that_comes_with_more_than_a_workspace_may_hold_is_no_growth(host: Host) -> None:
    """Its folder is at rest since a larger bound held; what is in it can be read and deleted."""
    host.server(workspace="4MiB")
    tenant, session = new_tenant_id(), new_session_id()
    folder = host.data_dir / "workspaces" / tenant / session
    folder.mkdir(parents=True)
    (folder / "large").write_bytes(b"x" * 9 * 1024**2)
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    done = await host.shell(runtime, f"cd /workspace/{session}; sleep 2; rm large; echo deleted")
    assert (done.status, done.output.strip()) == (0, "deleted")
    assert await host.answers(runtime)
    held = host.launcher.held(runtime)
    assert held is not None
    assert held.bytes >= 9 * 1024**2
