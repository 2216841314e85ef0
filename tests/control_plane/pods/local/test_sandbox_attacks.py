"""Attacks on a sandbox, run as real code in one: by its shell, by its Python, and in the runtime's own process."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from amplifier_api_server.tenants.ids import new_session_id, new_tenant_id
from tests.control_plane.pods.local.conftest import Host

# Run in a sandbox: tries system calls by number, and prints those that were not refused.
CALLS = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
numbers = dict(
    x86_64=dict(mount=165, umount2=166, pivot_root=155, chroot=161, unshare=272, setns=308, ptrace=101, bpf=321,
                keyctl=250, add_key=248, io_uring_setup=425, userfaultfd=323, perf_event_open=298, open_tree=428,
                process_vm_readv=310, kexec_load=246, memfd_create=319, shmget=29, clone3=435, future=500),
    aarch64=dict(mount=40, umount2=39, pivot_root=41, chroot=51, unshare=97, setns=268, ptrace=117, bpf=280,
                 keyctl=219, add_key=217, io_uring_setup=425, userfaultfd=282, perf_event_open=241, open_tree=428,
                 process_vm_readv=270, kexec_load=104, memfd_create=279, shmget=194, clone3=435, future=500),
)[platform.machine()]
for name, number in numbers.items():
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS):
        print(name, result, ctypes.get_errno())
"""


async def test_no_environment_of_the_host_is_inside(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-of-the-host")
    runtime = await host.started()
    done = await host.shell(runtime, "env; cat /proc/*/environ /proc/*/task/*/environ 2>/dev/null")
    assert "a-secret-of-the-host" not in done.output
    allowed = {"PATH", "HOME", "LANG", "PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"}
    for line in done.output.replace("\0", "\n").splitlines():
        name = line.partition("=")[0]
        assert name in allowed or name.startswith(("AMPLIFIER_", "PYTHON")), line


async def test_only_the_systems_own_files_are_visible(host: Host) -> None:
    runtime = await host.started()
    done = await host.shell(runtime, "ls -A / /etc /root /home /mnt /srv /var /opt /run /boot 2>/dev/null")
    seen = set(done.output.split())
    assert not seen & {"home", "mnt", "srv", "var", "opt", "run", "boot", "shadow", "ssh", "hostname", "fstab"}
    etc = set((await host.shell(runtime, "ls -A /etc")).output.split())
    assert etc <= {"passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "alternatives", "localtime"}


async def test_no_file_of_the_host_is_found_by_its_path(host: Host, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    repository = Path(__file__).parents[4]
    runtime = await host.started()
    paths = [
        str(tmp_path / "secret"),
        str(repository / "pyproject.toml"),
        str(host.data_dir),
        "/etc/shadow",
        "/root/.bashrc",
    ]
    for path in paths:
        assert (await host.shell(runtime, f"cat {path}; ls {path}")).output == "", path


async def test_the_system_can_not_be_written(host: Host) -> None:
    runtime = await host.started()
    done = await host.python(
        runtime,
        """
import os, sys
for path in ["/x", "/usr/x", "/etc/x", "/dev/x", "/proc/x", "/bin/x", sys.prefix + "/x", sys.base_prefix + "/x", "/collections/x"]:
    try:
        open(path, "w").close()
    except OSError:
        continue
    print(path)
for path in ["/proc/1/mem", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/etc/passwd"]:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        continue
    print(path)
for path in ["/proc/kcore", "/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/sys/kernel", "/proc/1/environ"]:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        elif not open(path, "rb").read(10):
            continue
    except OSError:
        continue
    print(path)
try:
    os.mknod("/tmp/device", 0o600 | 0o060000, os.makedev(254, 0))
    print("mknod")
except OSError:
    pass
""",
    )
    assert done.status == 0, done.error
    assert done.output == ""


async def test_system_calls_that_no_tool_needs_are_refused(host: Host) -> None:
    runtime = await host.started()
    for run in (host.python, host.module):
        done = await run(runtime, CALLS)
        assert (done.status, done.output) == (0, ""), done


async def test_no_privilege_is_inside_and_none_can_be_gained(host: Host) -> None:
    runtime = await host.started()
    script = """
grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t ' | sort
unshare -U true 2>/dev/null && echo user namespace
unshare -r -m true 2>/dev/null && echo mount namespace
su -c true 2>/dev/null && echo su
cp /usr/bin/id /tmp/id && chmod 6777 /tmp/id && /tmp/id -u
"""
    done = await host.shell(runtime, script)
    lines = done.output.split()
    assert [line for line in lines if line.startswith("Cap")] == [
        f"{name}:{0:016x}" for name in ("CapAmb", "CapBnd", "CapEff", "CapInh", "CapPrm")
    ]
    assert [line for line in lines if not line.startswith("Cap")] == ["NoNewPrivs:1", "Seccomp:2", "1000"]


async def test_no_process_of_the_host_or_of_another_runtime_is_seen_or_signalled(host: Host) -> None:
    runtime, other = await host.started(), await host.started()
    done = await host.python(
        runtime,
        f"""
import os
numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
print(len(numbers), max(numbers) < 1000)
for pid in ({os.getpid()}, {host.sandbox(other).main.pid}, {host.sandbox(other).root.pid}):
    if pid not in numbers:
        try:
            os.kill(pid, 0)
            print("reached", pid)
        except ProcessLookupError:
            pass
""",
    )
    assert done.output.splitlines() == ["3 True"], done  # the sandbox's first, the runtime, and this script itself
    assert await host.answers(other)


async def test_the_sandboxs_first_process_can_not_be_killed(host: Host) -> None:
    runtime = await host.started()
    await host.shell(runtime, "kill -9 1; kill -STOP 1; kill -SEGV 1")
    assert await host.answers(runtime)


async def test_no_network_is_reached(host: Host) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        runtime = await host.started()
        done = await host.python(
            runtime,
            f"""
import socket
for address in [("127.0.0.1", {listener.getsockname()[1]}), ("169.254.169.254", 80), ("1.1.1.1", 53), ("10.0.0.1", 22)]:
    try:
        socket.create_connection(address, timeout=0.5)
        print("reached", address)
    except OSError:
        pass
for address in [("::1", {listener.getsockname()[1]}), ("fd00:ec2::254", 80)]:
    try:
        one = socket.socket(socket.AF_INET6)
        one.settimeout(0.5)
        one.connect(address)
        print("reached", address)
    except OSError:
        pass
try:
    socket.getaddrinfo("example.com", 80)
    print("resolved")
except OSError:
    pass
for family in range(64):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            socket.socket(family, kind).close()
        except OSError:
            continue
        if family not in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) or kind == socket.SOCK_RAW and family != socket.AF_UNIX:
            print("made", family, kind)
print(*sorted(line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]))
""",
        )
        assert done.output.split() in ([], ["lo"]), done
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_tenants_own_tests_may_use_its_own_loopback(host: Host) -> None:
    runtime = await host.started()
    done = await host.python(
        runtime,
        "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('ok')",
    )
    assert done.output == "ok\n"


async def test_no_abstract_socket_of_the_host_is_reached(host: Host) -> None:
    name = f"\0amplifier-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        runtime = await host.started()
        done = await host.python(runtime, f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
        assert "ConnectionRefusedError" in done.error


async def test_no_socket_of_the_host_is_found_by_its_path(host: Host) -> None:
    runtime, other = await host.started(), await host.started()
    addresses = [str(host.launcher.address(other).path), host.gateway_path(other), host.gateway_path(runtime)]
    done = await host.python(
        runtime,
        f"""
import socket
for path in {addresses!r}:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("reached", path)
    except FileNotFoundError:
        pass
""",
    )
    assert (done.status, done.output) == (0, ""), done


async def test_no_file_of_another_runtime_is_found(host: Host) -> None:
    runtime, other, session = await host.started(), await host.started(), new_session_id()
    await host.launcher.attach(other, new_tenant_id(), session)
    await host.launcher.attach(runtime, new_tenant_id(), new_session_id())
    await host.write(other, session, "the-secret-of-another", "tenant")
    names = f"-name the-secret-of-another -o -name {session} -o -name '{other}*'"
    done = await host.shell(runtime, f"find / -path /proc -prune -o -path /usr -prune -o {names} 2>/dev/null")
    assert set(done.output.split()) <= {"/proc", "/usr"}


async def test_a_folder_moved_away_leads_nowhere_by_dots(host: Host) -> None:
    runtime, tenant, session = await host.started(), new_tenant_id(), new_session_id()
    await host.launcher.attach(runtime, tenant, session)
    # The runtime's own process is not killed for it: what it finds above must not be the host's.
    await host.module(
        runtime,
        f"import os; held = os.open('/workspace/{session}', os.O_RDONLY); globals()['__builtins__']['held'] = held",
    )
    await host.launcher.detach(runtime, tenant, session)
    script = """
import os
for path in ("..", "../..", "../../..", "../../../.."):
    try:
        print(os.listdir(os.open(path, os.O_RDONLY, dir_fd=held)))
    except OSError as error:
        print(error.errno)
"""
    done = await host.module(runtime, script)
    assert done.status == 0, done.error
    for line in done.output.splitlines():
        assert line.isdigit() or "usr" in line, done.output


async def test_a_tool_can_not_read_the_runtimes_memory_or_descriptors(host: Host) -> None:
    runtime = await host.started()
    done = await host.shell(
        runtime,
        """
for name in mem maps environ auxv; do head -c 1 /proc/2/$name 2>/dev/null && echo "read $name"; done
ls /proc/2/fd /proc/2/map_files /proc/2/cwd/ /proc/2/root/ 2>/dev/null
ls /proc/2/task/2/fd 2>/dev/null
strings /proc/2/mem 2>/dev/null | head -1
ls -l /proc/self/fd | grep -c socket
""",
    )
    assert done.output == "0\n"


async def test_a_tool_inherits_no_descriptor_of_the_runtime(host: Host) -> None:
    runtime = await host.started()
    done = await host.python(
        runtime,
        "import os; print([os.readlink(f'/proc/self/fd/{n}') for n in sorted(map(int, os.listdir('/proc/self/fd')))[:-1] if n > 2])",
    )
    assert done.output == "[]\n"


async def test_the_runtime_inherits_its_sockets_and_nothing_else(host: Host) -> None:
    runtime = await host.started()
    script = """
import os
for number in sorted(int(name) for name in os.listdir("/proc/self/fd")):
    try:
        print(number, os.environ["AMPLIFIER_LISTEN_FD"] == str(number), os.environ["AMPLIFIER_GATEWAY_FD"] == str(number), os.readlink(f"/proc/self/fd/{number}"))
    except FileNotFoundError:
        pass
"""
    done = await host.module(runtime, script)
    unknown = [line for line in done.output.splitlines() if "True" not in line and int(line.split()[0]) > 2]
    groups = [line for line in unknown if "/amplifier-" in line]
    unknown = [line for line in unknown if line not in groups]
    # The connection that this very question came by is the only other one.
    assert len(unknown) == 1, done.output
    assert "socket:" in unknown[0]
    # Files of its own control groups, and no folder: by its .. all that the host has mounted could be reached.
    files = {"cgroup.procs", "cgroup.kill", "memory.events", "memory.oom_control"}
    assert all(runtime in line and line.rpartition("/")[2] in files for line in groups), groups


async def test_a_fork_bomb_stays_inside(host: Host) -> None:
    host.server(processes=64)
    runtime, other = await host.started(), await host.started()
    await host.shell(runtime, "bomb() { bomb | bomb & }; (bomb) > /dev/null 2>&1 &")
    took: list[float] = []
    clock = asyncio.get_running_loop().time
    for _ in range(20):
        began = clock()
        assert await host.answers(other)
        took.append(clock() - began)
        assert len(host.sandbox(runtime).tools()) <= 64
    assert sorted(took)[10] < 0.5
    await host.launcher.stop(runtime, "it was a bomb", grace_seconds=0)
    assert await host.answers(other)


async def test_a_sandbox_can_not_raise_its_limits(host: Host) -> None:
    runtime = await host.started()
    script = """
import os, resource
for name in ("NPROC", "NOFILE", "FSIZE", "DATA", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        print("raised", name)
    except ValueError:
        pass
    if soft != hard or hard == resource.RLIM_INFINITY:
        print("unlimited", name, soft, hard)
try:
    os.nice(-1)
    print("nicer")
except OSError:
    pass
"""
    done = await host.python(runtime, script)
    assert (done.status, done.output) == (0, ""), done


async def test_what_tools_need_works(host: Host) -> None:
    runtime, session = await host.started(), new_session_id()
    await host.launcher.attach(runtime, new_tenant_id(), session)
    script = f"""
set -e
cd /workspace/{session}
echo hello | tr a-z A-Z > file; cat file
mkfifo pipe; (echo piped > pipe &); cat pipe
whoami; hostname; date > /dev/null; test -w /tmp; test -w /dev/shm; test -c /dev/null
ls /proc/self/fd > /dev/null
"""
    done = await host.shell(runtime, script)
    assert done.output.split() == ["HELLO", "piped", "sandbox", "sandbox"], done
    script = """
import multiprocessing, os, pty, threading
pid, terminal = pty.fork()
if pid == 0:
    print("in a terminal", os.isatty(0), flush=True)
    os._exit(0)
print(os.read(terminal, 100).decode().strip())
os.waitpid(pid, 0)
def work(queue): queue.put("from a process")
queue = multiprocessing.Queue()
one = multiprocessing.Process(target=work, args=(queue,)); one.start(); print(queue.get()); one.join()
thread = threading.Thread(target=print, args=("from a thread",)); thread.start(); thread.join()
"""
    done = await host.python(runtime, script)
    assert done.output.splitlines() == ["in a terminal True", "from a process", "from a thread"], done
