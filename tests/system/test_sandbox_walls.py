"""From inside a sandbox: nothing of the host, of other tenants or of the network can be seen.

Each attack is run twice, as real code: by the `bash` tool, and by a collection's module in the runtime's own process.
"""

import http.server
import os
import secrets
import socket
import sys
import threading

import pytest

from tests.system.evil import attacker, evil_archive, install
from tests.system.server import FREE, eventually

EXPECTED_ERRORS = ("runtime_lost",)
CANARY = "canary-" + secrets.token_hex(8)


@pytest.fixture(scope="module")
def settings():
    return {"SOME_SECRET": CANARY, "AMPLIFIER_LOGGING__LEVEL": "info"}


@pytest.fixture(scope="module")
def mallory(server):
    caller = server.tenant("mallory", **FREE)
    install(caller, evil_archive())
    return caller


@pytest.fixture(scope="module", params=["bash", "module"])
def attack(request, mallory):
    return attacker(mallory, request.param)


@pytest.fixture(scope="module")
def victim(server):
    """Another tenant, with a file, a socket and a process."""
    caller = server.tenant("victim", **FREE)
    session = caller.session()
    caller.shell(session, f"echo {CANARY} > own.txt; chmod 777 . own.txt")
    stop = threading.Event()

    def linger():
        while not stop.is_set():
            caller.ask(session, 'use bash {"command": "exec -a victims-process sleep 2"}')

    thread = threading.Thread(target=linger)
    thread.start()
    yield caller, session
    stop.set()
    thread.join()


class TestFiles:
    def test_only_the_system_is_there(self, attack):
        # The interpreter, the packages and this package are seen at their own paths, and nothing beside them.
        paths = [
            sys.base_prefix,
            sys.prefix,
            os.path.realpath(sys.base_prefix),
            os.path.abspath("src/amplifier_api_server"),
        ]
        parts: dict[str, set[str]] = {"/": set()}
        for path in paths:
            whole = [part for part in path.split("/") if part]
            for depth, part in enumerate(whole):
                parts.setdefault("/" + "/".join(whole[:depth]), set()).add(part)
        found = attack.found(f"""
            import os
            for folder in {sorted(parts)!r}:
                found[folder] = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            found["/etc"] = sorted(os.listdir("/etc"))
            """)
        system = {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "proc", "dev", "tmp"}
        etc = {"passwd", "group", "hosts", "nsswitch.conf", "ld.so.cache", "alternatives", "localtime"}
        assert set(found.pop("/")) <= system | {"workspace", "collections"} | parts["/"]
        assert set(found.pop("/etc")) <= etc
        for folder, listed in found.items():
            # Homes of this sandbox's own sessions are in its own /tmp.
            others = {one for one in listed if folder != "/tmp" or not one.startswith("own-")}
            assert folder.startswith("/usr") or others <= parts[folder], folder

    def test_no_file_of_the_host_can_be_opened(self, server, attack, tmp_path):
        marker = tmp_path / "of-the-host.txt"
        marker.write_text(CANARY)
        paths = [
            str(marker),
            str(server.data_dir / "amplifier.db"),
            *(str(path) for path in server.data_dir.iterdir() if path.is_file()),
            str(server.log_path),
            "/etc/shadow",
            "/etc/hostname",
            "/etc/ssh/sshd_config",
            "/root/.bashrc",
            "/root/.profile",
            "/proc/1/environ",
            "/proc/kcore",
            "/proc/kmsg",
            "/dev/mem",
            "/dev/vda",
            "/dev/sda",
            "/dev/kmsg",
            "/sys/kernel/debug",
            "/var/log/dpkg.log",
            os.path.abspath("pyproject.toml"),
            os.path.abspath("tests/system/server.py"),
            f"/proc/{os.getpid()}/environ",
        ]
        found = attack.found(f"""
            for path in {paths!r}:
                for way in (path, "/proc/1/root" + path, "/proc/self/root/../../../.." + path, "/proc/self/cwd/../../.." + path):
                    try:
                        with open(way, "rb") as file:
                            if file.read(64):
                                found[way] = "read"
                    except OSError:
                        pass
            """)
        own = [way for way in found if way.endswith("/proc/1/environ")]
        assert set(found) <= set(own), "its own first process's environment, where it may be seen at all, is empty"

    def test_nothing_that_can_be_read_names_the_servers_secrets(self, server, attack, victim):
        secret = [CANARY, server.key, server.operator_key, victim[0].key]
        found = attack.found(f"""
            import os
            wanted = [part[:12].encode() + part[12:].encode() for part in {[s[::-1] for s in secret]!r}]
            wanted = [one[::-1] for one in wanted]
            seen = 0
            def look(path):
                global seen
                try:
                    with open(path, "rb") as file:
                        text = file.read(1 << 20)
                except OSError:
                    return
                seen += 1
                if any(one in text for one in wanted) and not path.startswith("/proc/self/") and b"wanted" not in text:
                    found[path] = "holds a secret"
            for top in ("/etc", "/tmp", "/dev/shm", "/workspace", "/collections", "/run", "/var", "/home", "/root", "/work"):
                for folder, folders, files in os.walk(top):
                    if "site-packages" in folders:
                        folders.remove("site-packages")
                    for name in files:
                        look(os.path.join(folder, name))
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    for name in ("environ", "cmdline", "mountinfo", "maps"):
                        look(f"/proc/{{pid}}/{{name}}")
            found["seen"] = seen
            """)
        assert found.pop("seen") > 10
        assert not found

    def test_nothing_of_the_system_can_be_written(self, attack):
        found = attack.found("""
            import os
            for top in os.listdir("/"):
                for folder, folders, files in os.walk("/" + top):
                    depth = folder.count("/")
                    if depth > 3 or folder.startswith(("/proc/", "/tmp", "/workspace")):
                        folders.clear()
                        continue
                    try:
                        with open(os.path.join(folder, ".written"), "w") as file:
                            found[folder] = "written"
                        os.unlink(os.path.join(folder, ".written"))
                    except OSError:
                        pass
            for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches", "/proc/1/mem",
                         "/proc/1/oom_score_adj", "/etc/passwd", "/bin/sh", os.sys.executable):
                try:
                    os.close(os.open(path, os.O_WRONLY))
                    found[path] = "opened for writing"
                except OSError:
                    pass
            """)
        assert set(found) <= {"/tmp", "/workspace", "/dev/shm", "/proc/1/oom_score_adj"}, found

    def test_the_collections_cannot_be_changed(self, attack):
        found = attack.found("""
            import os
            for folder, folders, files in os.walk("/collections"):
                for name in files:
                    path = os.path.join(folder, name)
                    for change in (lambda: open(path, "a").close(), lambda: os.unlink(path), lambda: os.chmod(path, 0o777)):
                        try:
                            change()
                            found[path] = "changed"
                        except OSError:
                            pass
            """)
        assert not found


class TestOtherTenants:
    def test_no_file_of_another_tenant(self, attack, victim, server):
        _, session = victim
        found = attack.found(f"""
            import os
            found["listed"] = os.listdir("/workspace")
            for path in ("/workspace/{session}", "/workspace/../{session}", "/proc/1/root/workspace/{session}"):
                if os.path.exists(path):
                    found[path] = "is there"
            """)
        assert session not in found["listed"]
        assert set(found) == {"listed"}

    def test_no_process_of_another_tenant_or_the_host(self, attack, victim):
        found = attack.found("""
            import os
            found["commands"] = []
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    try:
                        found["commands"].append(open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace"))
                    except OSError:
                        pass
            found["killed"] = []
            for pid in range(2, 40000):
                if not os.path.exists(f"/proc/{pid}"):
                    try:
                        os.kill(pid, 0)
                        found["killed"].append(pid)
                    except OSError:
                        pass
            """)
        assert not [text for text in found["commands"] if "victims-process" in text or "serve" in text.split("\0")]
        assert not found["killed"], "numbers beyond the own processes reach nobody"

    def test_killing_everybody_reaches_only_the_own_sandbox(self, server, mallory, victim):
        caller, session = victim
        one = attacker(mallory, "bash")
        mallory.execute(one.session_id, one.prompt("import os, signal\nos.kill(-1, signal.SIGKILL)"))
        assert server.process.poll() is None
        assert caller.status(session) == "active"
        other = caller.session()
        assert caller.ask(other, "are you well?")["response"]
        assert eventually(lambda: mallory.execute(one.session_id, "and I?").status == 200)


class TestEnvironment:
    def test_there_is_none(self, attack):
        found = attack.found("import os\nfound.update(os.environ)")
        names = {"PATH", "HOME", "LANG", "PWD", "TERM", "PAGER", "TMPDIR", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
        doors = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"}
        assert all("127.0.0.1" in found[name] for name in doors if name.endswith("URL"))
        assert len({found[name] for name in doors if name.endswith("KEY")}) == 1, "a dummy, for clients that want any"
        names |= doors | {"PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE", "PYDANTIC_DISABLE_PLUGINS"}
        assert {name for name in found if not name.startswith("AMPLIFIER_")} <= names
        assert {name for name in found if name.startswith("AMPLIFIER_")} <= {
            "AMPLIFIER_LISTEN_FD",
            "AMPLIFIER_GATEWAY_FD",
            "AMPLIFIER_WORKSPACE",
            "AMPLIFIER_COLLECTIONS",
            "AMPLIFIER_HOME",
            "AMPLIFIER_MAIN_PID",
            "AMPLIFIER_GROUPS",
        }
        assert CANARY not in str(found)

    def test_a_tool_cannot_look_into_its_runtime(self, mallory):
        one = attacker(mallory, "bash")
        found = one.found("""
            import os
            for pid in (1, 2):  # bubblewrap's own, and the runtime
                for name in ("mem", "maps", "environ", "auxv", "io", "fd"):
                    path = f"/proc/{pid}/{name}"
                    try:
                        found[path] = os.listdir(path) if name == "fd" else open(path, "rb").read(64).decode(errors="replace")
                    except OSError:
                        pass
            found["sockets"] = [one for one in map(lambda fd: os.readlink(f"/proc/self/fd/{fd}"), os.listdir("/proc/self/fd")[:-1])
                                if "socket" in one]
            """)
        assert not found.pop("sockets")
        assert {path for path, text in found.items() if text} <= {
            "/proc/1/maps",
            "/proc/1/auxv",
            "/proc/1/io",
            "/proc/1/fd",
        }, found


@pytest.fixture(scope="module")
def listening():
    """What listens on every address of the host, and by an abstract name."""
    one = http.server.ThreadingHTTPServer(("0.0.0.0", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    name = "\0system-test-" + secrets.token_hex(4)
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        yield one.server_port, name
    one.shutdown()
    one.server_close()
    thread.join()


class TestNetwork:
    def test_nobody_can_be_reached(self, attack, server, listening):
        port, name = listening
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(name)  # from here it can
        addresses = {
            "127.0.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "8.8.8.8",
            "1.1.1.1",
            "10.0.0.1",
            "172.17.0.1",
            own(),
        }
        places = [(address, one) for address in sorted(addresses) for one in (server.port, port, 80, 53, 443)]
        found = attack.found(f"""
            import socket
            for address, port in {places!r}:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as one:
                        one.settimeout(0.5)
                        try:
                            one.connect((address, port))
                            one.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
                            if one.recv(100):
                                found[f"{{address}}:{{port}}"] = "answered"
                        except OSError as error:
                            pass
            for address in ("::1", "fd00:ec2::254", "2001:4860:4860::8888"):
                try:
                    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
                        one.settimeout(0.5)
                        one.connect((address, 80))
                        found[address] = "connected"
                except OSError:
                    pass
            try:
                with socket.socket(socket.AF_UNIX) as one:
                    one.connect({name!r})
                    found["abstract"] = "connected"
            except OSError:
                pass
            for host in ("example.com", "metadata.google.internal", "localhost.localdomain"):
                try:
                    found[host] = socket.getaddrinfo(host, 80)[0][4][0]
                except OSError:
                    pass
            """)
        assert not found

    def test_other_families_of_sockets_are_refused(self, attack):
        found = attack.found("""
            import socket
            for family, kind, number in ((40, 1, 0), (16, 3, 0), (17, 3, 0), (2, 3, 1), (38, 5, 0), (31, 1, 0), (29, 3, 1)):
                try:
                    socket.socket(family, kind, number).close()
                    found[str(family)] = "made"
                except OSError:
                    pass
            """)
        assert not found


def own() -> str:
    """An address of this host that is not its loopback, or the loopback where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


class TestKernel:
    def test_no_privileges_can_be_had(self, attack):
        found = attack.found("""
            import ctypes, os
            libc = ctypes.CDLL(None, use_errno=True)
            for name, call in {
                "unshare user": lambda: libc.unshare(0x10000000),
                "unshare net": lambda: libc.unshare(0x40000000),
                "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
                "umount": lambda: libc.umount2(b"/proc", 2),
                "chroot": lambda: libc.chroot(b"/tmp"),
                "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
                "setuid": lambda: libc.setuid(0),
                "setns": lambda: libc.setns(os.open("/proc/1/ns/net", os.O_RDONLY), 0),
                "bpf": lambda: libc.syscall(321, 0, 0, 0),
                "io_uring": lambda: libc.syscall(425, 8, 0),
                "keyctl": lambda: libc.syscall(250, 0, -3, 1),
                "perf": lambda: libc.syscall(298, 0, 0, -1, -1, 0),
                "memfd": lambda: libc.syscall(319, b"x", 0),
                "userfaultfd": lambda: libc.syscall(323, 0),
                "reboot": lambda: libc.syscall(169, 0, 0, 0, 0),
                "sethostname": lambda: libc.sethostname(b"x", 1),
                "process_vm_readv": lambda: libc.syscall(310, 1, 0, 0, 0, 0, 0),
            }.items():
                try:
                    if call() >= 0:
                        found[name] = "allowed"
                except OSError:
                    pass
            status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
            for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
                if int(status[name], 16):
                    found[name] = status[name].strip()
            if status["NoNewPrivs"].strip() != "1" or status["Seccomp"].strip() != "2":
                found["status"] = [status["NoNewPrivs"], status["Seccomp"]]
            """)
        assert not found
