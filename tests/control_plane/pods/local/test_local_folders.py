"""The folders of a local sandbox: sessions' come and go, collections are shared and can't be changed."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from amplifier_api_server.control_plane.pods import process
from amplifier_api_server.control_plane.pods.launcher import LaunchError
from amplifier_api_server.tenants.ids import new_session_id, new_tenant_id
from tests.control_plane.pods.local.conftest import Host


async def test_a_runtime_has_sessions_of_one_tenant_only(host: Host) -> None:
    runtime = await host.started()
    await host.launcher.attach(runtime, new_tenant_id(), new_session_id())
    with pytest.raises(LaunchError):
        await host.launcher.attach(runtime, new_tenant_id(), new_session_id())


async def test_an_id_that_is_a_path_is_refused(host: Host) -> None:
    runtime = await host.started()
    with pytest.raises(LaunchError, match="no id"):
        await host.launcher.attach(runtime, new_tenant_id(), "../../etc")
    with pytest.raises(LaunchError, match="no id"):
        await host.launcher.install(runtime, "../abc", str(host.data_dir))
    with pytest.raises(LaunchError, match="no id"):
        await host.launcher.start("../run_x")


async def test_a_workspace_comes_back_without_setuid_files_and_not_owned_by_the_last_user(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    first, second = await host.started(), await host.started()
    await host.launcher.attach(first, tenant, session)
    script = f"cd /workspace/{session} && mkdir -p a/b && cp /usr/bin/id a/b/id && chmod 6755 a/b/id && chmod 2777 a && ln -s /etc/shadow link"
    assert (await host.shell(first, script)).status == 0
    await host.launcher.detach(first, tenant, session)
    at_rest = host.data_dir / "workspaces" / tenant / session
    assert stat.S_IMODE(at_rest.stat().st_mode) == 0o700
    assert at_rest.stat().st_uid == os.geteuid()
    await host.launcher.attach(second, tenant, session)
    done = await host.shell(
        second, f"cd /workspace/{session} && echo new > a/b/file && stat -c %u:%a a/b/id && stat -c %u link"
    )
    assert done.error == ""
    expected = "1000:755" if os.geteuid() == 0 else "1000:6755"  # as an ordinary user both are the same one
    assert done.output.split() == [expected, "1000"]


async def test_a_sandbox_that_takes_a_sessions_name_first_loses_it(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.shell(runtime, f"mkdir -p /workspace/{session}/full && echo mine > /workspace/{session}/full/file")
    await host.launcher.attach(runtime, tenant, session)
    assert (await host.shell(runtime, f"ls -A /workspace/{session}")).output == ""
    # What was there stays where it counts, and may be deleted.
    assert (
        await host.shell(runtime, "cat /workspace/.taken-*/full/file && rm -r /workspace/.taken-*")
    ).output == "mine\n"
    other = new_session_id()
    await host.shell(runtime, f"ln -s / /workspace/{other}")
    await host.launcher.attach(runtime, tenant, other)
    assert (await host.shell(runtime, f"ls -A /workspace/{other}")).output == ""


@pytest.mark.parametrize(
    "replace",
    [
        "mv {0} gone",
        "mv {0} gone; ln -s /etc {0}",
        "mv {0} gone; echo file > {0}",
        "mv {0} gone; mkfifo {0}",
        "rm -r {0}",
    ],
)
async def test_a_session_that_was_renamed_away_comes_back_empty(host: Host, replace: str) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    done = await host.shell(runtime, f"cd /workspace && {replace.format(session)}")
    assert done.status == 0, done.error
    await host.launcher.detach(runtime, tenant, session)
    at_rest = host.data_dir / "workspaces" / tenant / session
    assert at_rest.is_dir()
    assert not at_rest.is_symlink()
    assert list(at_rest.iterdir()) == []


async def test_a_folder_whose_modes_forbid_everything_still_moves(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    await host.shell(
        runtime,
        f"cd /workspace && echo kept > {session}/file && mkdir {session}/no && chmod 0 {session}/no {session} .",
    )
    await host.launcher.detach(runtime, tenant, session)
    await host.launcher.attach(runtime, tenant, session)
    assert await host.read(runtime, session, "file") == "kept\n"
    await host.launcher.forget(tenant, session)
    assert not (host.data_dir / "workspaces" / tenant / session).exists()


HIDES_A_FOLDER = """
import os, socket, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(3):
            os.close(descriptor)
        pair = socket.socketpair()
        folder = os.open("/workspace/{session}", os.O_RDONLY)
        socket.send_fds(pair[0], [b"x"], [folder])
        os.close(folder)
        os.chdir("/")
        os.open("/tmp/hidden", os.O_CREAT)
        time.sleep(1000)
"""


async def test_nothing_but_running_calls_outlives_the_detachment_of_a_folder(host: Host) -> None:
    """A descriptor on its way through a socket is in no process's table: who has it can't be told from who hasn't."""
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    inside = host.sandbox(runtime)
    running = asyncio.create_task(host.shell(runtime, "cd /; echo $$ > /tmp/runs; exec sleep 1001"))
    await host.shell(runtime, "while ! [ -s /tmp/runs ]; do :; done")
    before = set(inside.tools())
    await host.python(runtime, HIDES_A_FOLDER.format(session=session))
    await host.shell(runtime, f"while ! [ -e /tmp/hidden ]; do :; done; cd /workspace/{session} && sleep 1002 > file &")
    hidden = set(inside.tools()) - before
    assert len(hidden) >= 2
    await host.launcher.detach(runtime, tenant, session)
    async with asyncio.timeout(60):  # a killed process is seen as such a moment later
        while any(process.is_alive(one) for one in hidden):
            await asyncio.sleep(0)
    assert all(process.is_alive(one) for one in before)
    assert await host.answers(runtime)
    running.cancel()


IN_FLIGHT = """
import os, socket, time
pair = socket.socketpair()
file = os.open("/workspace/{session}/file", os.O_CREAT | os.O_RDWR)
socket.send_fds(pair[0], [b"x"], [file])
os.close(file)
"""
WITHIN_ANOTHER = """
import os, socket, time
inner, outer = socket.socketpair(), socket.socketpair()
file = os.open("/workspace/{session}/file", os.O_CREAT | os.O_RDWR)
socket.send_fds(inner[0], [b"x"], [file])
socket.send_fds(outer[0], [b"x"], [inner[0].fileno(), inner[1].fileno()])
os.close(file)
inner[0].close(), inner[1].close()
"""
NOT_YET_ACCEPTED = """
import os, socket, time
listener, sender = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
listener.bind("/tmp/listens")
listener.listen()
sender.connect("/tmp/listens")
file = os.open("/workspace/{session}/file", os.O_CREAT | os.O_RDWR)
socket.send_fds(sender, [b"x"], [file])
os.close(file)
"""
MAPPED = """
import ctypes, os, time
mmap = ctypes.CDLL(None).mmap  # Python's own keeps a descriptor
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
file = os.open("/workspace/{session}/file", os.O_CREAT | os.O_RDWR)
os.ftruncate(file, 65536)
mmap(None, 65536, 3, 1, file, 0)
os.close(file)
"""
MAPPED_AND_DELETED = MAPPED + 'os.unlink("/workspace/{session}/file")\n'


@pytest.mark.parametrize("holds", [IN_FLIGHT, WITHIN_ANOTHER, NOT_YET_ACCEPTED, MAPPED, MAPPED_AND_DELETED])
async def test_a_running_call_that_holds_a_detached_folder_out_of_every_table_is_killed(host: Host, holds: str) -> None:
    """Another session's: it would write into files at rest, which nobody measures."""
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    inside = host.sandbox(runtime)
    honest = asyncio.create_task(host.shell(runtime, "cd /; echo $$ > /tmp/runs; exec sleep 1001"))
    await host.shell(runtime, "while ! [ -s /tmp/runs ]; do :; done")
    before = set(inside.tools())
    code = holds.format(session=session) + 'os.chdir("/")\nos.open("/tmp/held", os.O_CREAT)\ntime.sleep(1000)\n'
    hostile = asyncio.create_task(host.python(runtime, code))
    await host.shell(runtime, "while ! [ -e /tmp/held ]; do :; done")
    await host.launcher.detach(runtime, tenant, session)
    await asyncio.wait_for(hostile, 60)  # it has ended, long before its sleep
    assert all(process.is_alive(one) for one in before)
    honest.cancel()


async def test_a_detached_folder_is_the_servers_own_down_to_its_last_file(host: Host) -> None:
    tenant, session = new_tenant_id(), new_session_id()
    runtime = await host.started()
    await host.launcher.attach(runtime, tenant, session)
    await host.shell(
        runtime,
        f"cd /workspace/{session}; mkdir -p a/b; touch a/b/c; chmod 4755 a/b/c; ln -s /etc/passwd a/link; ln a/b/c d",
    )
    await host.launcher.detach(runtime, tenant, session)
    folder = host.data_dir / "workspaces" / tenant / session
    found = [folder, *folder.rglob("*")]
    assert len(found) == 6
    assert {path.lstat().st_uid for path in found} == {os.geteuid()}
    if os.geteuid() == 0:  # an ordinary user runs the sandboxes too
        assert {path.lstat().st_mode & 0o6000 for path in found} == {0}
    again = await host.started()
    await host.launcher.attach(again, tenant, session)
    assert (await host.shell(again, f"cd /workspace/{session}; echo x > a/b/c && cat d")).output == "x\n"


async def test_collections_are_seen_and_can_not_be_changed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "a" / "run.sh").chmod(0o755)
    runtime = await host.started()
    await host.launcher.install(runtime, "abc", str(tmp_path))
    assert (await host.shell(runtime, "/collections/abc/a/run.sh")).output == "ran\n"
    done = await host.shell(
        runtime,
        "echo x > /collections/abc/a/run.sh; rm -r /collections/abc; mkdir /collections/new; ls -R /collections",
    )
    assert "new" not in done.output.split()
    assert (await host.shell(runtime, "/collections/abc/a/run.sh")).output == "ran\n"


async def test_nobody_in_a_sandbox_can_change_a_tree_that_others_share(host: Host, tmp_path: Path) -> None:
    """Its files are the tree's own, by second names: whatever a sandbox could do to one, all tenants would see."""
    (tmp_path / "tool.py").write_text("fine")
    (tmp_path / "tool.py").chmod(0o644)
    before = (tmp_path / "tool.py").stat()
    one, other = await host.started(), await host.started()
    for runtime in (one, other):
        await host.launcher.install(runtime, "abc", str(tmp_path))
    assert (tmp_path / "tool.py").stat().st_nlink == 3
    attack = """
import os
path = "/collections/abc/tool.py"
tries = [
    lambda: open(path, "w").write("evil"),
    lambda: os.chmod(path, 0o666),
    lambda: os.chown(path, os.getuid(), os.getgid()),
    lambda: os.utime(path, (1, 1)),
    lambda: os.unlink(path),
    lambda: os.truncate(path, 0),
    lambda: os.rename(path, "/workspace/tool.py"),
    lambda: (os.link(path, "/workspace/tool.py"), open("/workspace/tool.py", "w").write("evil")),
    lambda: open(f"/proc/self/fd/{os.open(path, os.O_RDONLY)}", "w").write("evil"),
    lambda: os.fchmod(os.open(path, os.O_RDONLY), 0o666),
    lambda: os.setxattr(path, "user.evil", b"x"),
]
for number, attempt in enumerate(tries):
    try:
        attempt()
    except OSError:
        continue
    print("did", number)
"""
    for how in ("module", "python"):
        done = await host.run(one, {"module": "exec", "python": "python"}[how], attack)
        assert "did" not in done.output
    assert (await host.shell(other, "cat /collections/abc/tool.py")).output == "fine"
    after = (tmp_path / "tool.py").stat()
    assert (after.st_mode, after.st_uid, after.st_size, after.st_mtime) == (
        before.st_mode, before.st_uid, before.st_size, before.st_mtime
    )  # fmt: skip


async def test_without_a_sandbox_trees_are_copied(data_dir: Path, tmp_path: Path) -> None:
    """There a session's own shell could change a shared file."""
    (tmp_path / "tool.py").write_text("fine")
    (tmp_path / "tool.py").chmod(0o644)
    plain = Host(data_dir, "none")
    try:
        await plain.launcher.install(await plain.started(), "abc", str(tmp_path))
        assert (tmp_path / "tool.py").stat().st_nlink == 1
    finally:
        await plain.close()


async def test_a_collection_with_a_link_is_refused_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    runtime = await host.started()
    with pytest.raises(LaunchError, match="link"):
        await host.launcher.install(runtime, "abc", str(tmp_path))
    assert (await host.shell(runtime, "ls -A /collections")).output == ""
