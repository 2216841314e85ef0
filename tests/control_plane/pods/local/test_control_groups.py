"""What the kernel holds of a sandbox's bounds by control groups, attacked by real programs; and how groups are found."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import control_groups, hierarchies, sandbox_check
from amplifier_api_server.control_plane.pods.control_groups import ControlGroups, GroupsError
from amplifier_api_server.control_plane.pods.group import oom_kills, read_pids, write
from amplifier_api_server.control_plane.pods.hierarchies import Hierarchy
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.tenants.ids import RuntimeId, new_session_id, new_tenant_id
from tests.control_plane.pods.launcher_suite import woken
from tests.control_plane.pods.local.conftest import Host, require_sandboxes
from tests.control_plane.pods.local.unified_hierarchy import UnifiedHierarchy

MIB = 1024 * 1024
SIGKILLED = (-9, 137)
V1 = "33 23 0:30 / /sys/fs/cgroup/{0} rw,relatime - cgroup cgroup rw,{0}\n"
V2 = "41 31 0:38 / /sys/fs/cgroup{0} rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("mounts", "own", "found"),
    [
        ("", "", []),
        (V2.format(""), "0::/a.slice/b.service\n", [("/sys/fs/cgroup/a.slice/b.service", "", True)]),
        (V2.format(""), "0::/a.service/amplifier-server\n", [("/sys/fs/cgroup/a.service", "", True)]),
        (V2.format(""), "0::/../outside\n", []),
        (
            V1.format("memory") + V1.format("pids") + V1.format("freezer") + V2.format("/unified"),
            "9:name=systemd:/\n4:memory:/jobs/one\n8:pids:/\n6:freezer:/\n0::/\n",
            [
                ("/sys/fs/cgroup/unified", "", True),
                ("/sys/fs/cgroup/memory/jobs/one", "memory", False),
                ("/sys/fs/cgroup/pids", "pids", False),
            ],
        ),
        (V1.format("cpu,cpuacct"), "3:cpu,cpuacct:/x\n", [("/sys/fs/cgroup/cpu,cpuacct/x", "cpu", False)]),
        # A container without a cgroup namespace sees its own subtree where the whole is mounted elsewhere.
        (
            "9 8 0:3 /docker/abc /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n",
            "4:memory:/docker/abc/inner\n",
            [("/sys/fs/cgroup/my memory/inner", "memory", False)],
        ),
        ("9 8 0:3 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n", "4:memory:/docker/abcd\n", []),
        ("9 8 0:3 / /proc rw - proc proc rw\ntoo short - cgroup cgroup rw,memory\n", "4:memory:/\n", []),
    ],
)
def test_the_servers_own_groups_are_found(mounts: str, own: str, found: list[tuple[str, str, bool]]) -> None:
    expected = [Hierarchy(Path(path), frozenset(names.split(",")) - {""}, is_v2=is_v2) for path, names, is_v2 in found]
    assert hierarchies.parse(mounts, own) == expected


@pytest.fixture
async def groups(data_dir: Path) -> AsyncIterator[Host]:
    """A host whose sandboxes are bounded by control groups."""
    await require_sandboxes()
    probe = ControlGroups(settings.Sandbox(), data_dir)
    probe.prepare([])
    held = probe.held
    probe.close()
    if held != control_groups.ALL:
        pytest.skip(f"the server can't make all control groups here: {probe.refused}")
    host = Host(data_dir)
    yield host
    await host.close()
    assert folders_of(host) == []


def folders_of(host: Host) -> list[Path]:
    """All groups of the host's data folder that are there now."""
    name = host.launcher._groups._name
    return [path for one in hierarchies.find() if (path := one.folder / name).exists()]


def folder(host: Host, runtime: RuntimeId, controller: str) -> Path:
    return host.sandbox(runtime).group._with(controller).folder / runtime


def most_memory(host: Host, runtime: RuntimeId) -> int:
    path = folder(host, runtime, "memory")
    name = "memory.peak" if (path / "memory.max").exists() else "memory.max_usage_in_bytes"
    return int((path / name).read_text())


SHARED_PAGES = """
import mmap
memory = mmap.mmap({open}, 512 * 2**20, mmap.MAP_SHARED)
step = 4 * 2**20
for start in range(0, len(memory), step):
    for place in range(start, start + step, 4096):
        memory[place] = 1
    memory.madvise(mmap.MADV_DONTNEED, start, step)
print("all of it is held")
"""
SOCKETS = """
import socket
held = []
for _ in range(480):
    pair = socket.socketpair()
    for one in pair:
        one.setblocking(False)
        try:
            while True:
                one.send(bytes(65536))
        except BlockingIOError:
            pass
    held.append(pair)
print("all of it is held")
"""
TOGETHER = """
import os
children = []
for _ in range(8):
    if (child := os.fork()) == 0:
        eaten = bytearray(b"x") * (100 * 2**20)
        os._exit(0)
    children.append(child)
killed = sum(os.waitpid(child, 0)[1] == 9 for child in children)
raise SystemExit(0 if killed == 0 else 137)
"""


@pytest.mark.parametrize(
    "attack",
    [
        SHARED_PAGES.format(open="-1"),
        SHARED_PAGES.format(open="__import__('os').open('/dev/zero', 2)"),
        SOCKETS,
        TOGETHER,
    ],
    ids=["shared pages that are in no RSS", "the same by /dev/zero", "sockets", "eight at once"],
)
async def test_no_memory_passes_the_limit_whatever_it_is(groups: Host, attack: str) -> None:
    groups.server(memory="128MiB")
    runtime = await groups.started()
    done = await groups.python(runtime, attack)
    assert done.status in SIGKILLED, done
    assert most_memory(groups, runtime) <= 128 * MIB
    assert await groups.answers(runtime)


async def test_what_the_kernel_kills_for_memory_is_logged_and_is_the_reason(groups: Host) -> None:
    groups.server(memory="128MiB")
    wakes = woken(groups.launcher)
    runtime = await groups.started()
    sandbox = groups.sandbox(runtime)
    await groups.module(
        runtime, f"import threading\nthreading.Thread(target=exec, args=({SHARED_PAGES.format(open='-1')!r},)).start()"
    )
    assert await asyncio.wait_for(wakes.get(), 60) == runtime
    assert sandbox.reason == "killed: memory over 128 MiB"


async def test_processes_of_a_sandbox_are_counted_by_the_kernel(groups: Host) -> None:
    groups.server(processes=40)
    runtime = await groups.started()
    assert int((folder(groups, runtime, "pids") / "pids.max").read_text()) == 43
    done = await groups.shell(runtime, "for n in $(seq 100); do sleep 60 & done; wait")
    assert "fork" in done.error.lower()
    assert int((folder(groups, runtime, "pids") / "pids.current").read_text()) <= 43


async def test_many_sandboxes_of_one_tenant_weigh_as_one(groups: Host) -> None:
    def weight(runtime: RuntimeId) -> int:
        path = folder(groups, runtime, "cpu")
        return int((path / ("cpu.weight" if (path / "cpu.weight").exists() else "cpu.shares")).read_text())

    tenant, other = new_tenant_id(), new_tenant_id()
    many = [await groups.started() for _ in range(4)]
    one = await groups.started()
    sessions = [new_session_id() for _ in many]
    for runtime, session in zip(many, sessions, strict=True):
        await groups.launcher.attach(runtime, tenant, session)
    await groups.launcher.attach(one, other, new_session_id())
    assert sum(weight(runtime) for runtime in many) == weight(one)
    await groups.launcher.detach(many[0], tenant, sessions[0])
    await groups.launcher.stop(many[1], "it is enough", grace_seconds=0)
    assert sum(weight(runtime) for runtime in many[2:]) == weight(one)


async def test_sandboxes_together_weigh_less_than_the_server(groups: Host) -> None:
    runtime = await groups.started()
    together = folder(groups, runtime, "cpu").parent
    server = together.parent / hierarchies.SERVER_LEAF
    name = "cpu.shares" if (together / "cpu.shares").exists() else "cpu.weight"
    assert int((together / name).read_text()) * 8 == int((server / name).read_text())
    assert os.getpid() in read_pids(server)


async def test_a_process_is_in_its_group_before_it_runs_anything(groups: Host) -> None:
    runtime = await groups.started()
    await groups.shell(runtime, "setsid sleep 60 > /dev/null 2>&1 &")
    path = folder(groups, runtime, "memory")
    inside = {pid for one in path.rglob("cgroup.procs") for pid in read_pids(one.parent)}
    sandbox = groups.sandbox(runtime)
    assert {sandbox.root.pid, sandbox.main.pid, *(one.pid for one in sandbox.tools())} <= inside


async def test_what_a_killed_server_left_is_ended_and_removed(groups: Host) -> None:
    earlier = ControlGroups(settings.Sandbox(), groups.data_dir)
    earlier.prepare([])
    left = earlier.make(RuntimeId("run_left"))
    with subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True) as stray:
        left.enter(stray.pid)
        later = ControlGroups(settings.Sandbox(), groups.data_dir)
        later.prepare([])
        assert await asyncio.to_thread(stray.wait, 10) == -9
    assert not any((path / "run_left").exists() for path in folders_of(groups))
    later.close()


async def test_a_group_that_is_written_down_but_not_ours_is_left_alone(groups: Host) -> None:
    foreign = hierarchies.find()[0].folder / f"foreign-{os.getpid()}"
    foreign.mkdir()
    try:
        (groups.data_dir / "control_groups.json").write_text(json.dumps([str(foreign), 7, "/etc"]))
        one = ControlGroups(settings.Sandbox(), groups.data_dir)
        one.prepare([])
        one.close()
        assert foreign.exists()
        assert (groups.data_dir / "control_groups.json").read_text() == "[]"
    finally:
        foreign.rmdir()


async def test_groups_that_are_required_and_can_not_be_had_are_an_error(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hierarchies, "find", list)
    with pytest.raises(GroupsError, match="can't be had: cpu, kill, memory, pids"):
        ControlGroups(settings.Sandbox(cgroups="required"), data_dir).prepare([])
    await require_sandboxes()
    host = Host(data_dir)
    host.server(cgroups="required")
    with pytest.raises(LaunchError, match=r"sandbox\.cgroups is required"):
        await host.started()
    await host.close()


async def test_what_is_only_watched_is_told() -> None:
    await require_sandboxes()
    report = await sandbox_check.check(settings.Sandbox(cgroups="never"))
    assert report.works
    assert "memory" in report.watched[0]
    assert "share of processors" in report.watched[0]


def test_a_count_of_kills_is_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "v1").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    (tmp_path / "v2").write_text("low 0\nhigh 0\nmax 5\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert [oom_kills(tmp_path / name) for name in ("v1", "v2", "gone")] == [3, 2, 0]


def test_writing_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "cgroup.kill", "1")


def test_on_v2_the_server_makes_room_for_its_sandboxes_groups_and_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = UnifiedHierarchy(tmp_path, [os.getppid(), os.getpid()], monkeypatch)
    monkeypatch.setattr(
        hierarchies, "find", lambda: [Hierarchy(kernel.own, frozenset({"cpu", "memory", "pids"}), is_v2=True)]
    )
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    groups = ControlGroups(settings.Sandbox(cgroups="required", memory=1024 * MIB, processes=100), data_dir)
    groups.prepare([])
    leaf = kernel.own / hierarchies.SERVER_LEAF
    assert read_pids(leaf) == [os.getppid(), os.getpid()]
    assert read_pids(kernel.own) == []
    runtime = RuntimeId("run_one")
    made = groups.make(runtime)
    made.enter(4_000_000)
    groups.share_out([runtime, RuntimeId("run_gone")])
    top = kernel.own / groups._name
    read = {
        name: (top / runtime / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.weight")
    }
    assert read == {"memory.max": str(1024 * MIB), "memory.swap.max": "0", "pids.max": "103", "cpu.weight": "50"}
    assert (top / runtime / "tools" / "memory.max").read_text() == str(896 * MIB)
    assert (top / runtime / "tools" / "pids.max").read_text() == "84"
    assert read_pids(top / runtime / "main") == [4_000_000]
    assert (leaf / "cpu.weight").read_text() == "800"
    assert (top / "cpu.weight").read_text() == "100"
    groups.remove(runtime)
    groups.close()
    assert read_pids(kernel.own) == [os.getppid(), os.getpid()]
    assert [one.name for one in kernel.own.iterdir() if one.is_dir()] == []


def test_on_v2_a_group_that_strangers_are_in_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = UnifiedHierarchy(tmp_path, [os.getpid(), 4_000_000], monkeypatch)
    monkeypatch.setattr(
        hierarchies, "find", lambda: [Hierarchy(kernel.own, frozenset({"cpu", "memory", "pids"}), is_v2=True)]
    )
    groups = ControlGroups(settings.Sandbox(), tmp_path)
    groups.prepare([])
    assert groups.held == {control_groups.KILL}
    assert "1 processes that are not the server's" in groups.refused[str(kernel.own)]
    assert read_pids(kernel.own) == [os.getpid(), 4_000_000]
    groups.close()
