"""What a command or a module leaves running, after it has killed the supervisor that would end it: nothing outlives the
call, or the session. On real servers, with control groups where the machine has them, and without.
"""

import secrets

import pytest

from tests.system.evil import attacker, evil_archive, install
from tests.system.server import FREE, eventually

EXPECTED_ERRORS = ("module_failed", "a call left forks on", "runtime_lost")

# Each is Python that leaves processes whose command line holds the marker.
LEAVES_ONE = """
import os, signal, subprocess, sys
supervisor = os.getppid() if {by_module} else {shells_parent}
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        for descriptor in range(3):
            os.close(descriptor)
        os.execvp("sleep", ["sleep", "1000", "0{marker}"])
    os._exit(0)
os.wait()
os.kill(supervisor, signal.SIGKILL)
"""
FORKS_ON = """
import os, signal, sys
supervisor = os.getppid() if {by_module} else {shells_parent}
if os.fork() == 0:
    os.setsid()
    for descriptor in range(3):
        os.close(descriptor)
    code = "import os\\nfile = os.open('{marker}', os.O_CREAT | os.O_APPEND | os.O_WRONLY)\\n"
    code += "while True:\\n  os.fork() and os._exit(0)\\n  os.write(file, b'x')"
    os.execv(sys.executable, [sys.executable, "-c", code, "0{marker}"])
while not os.path.exists("{marker}"):
    pass
os.kill(supervisor, signal.SIGKILL)
"""
SHELLS_PARENT = "int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])"


@pytest.fixture(scope="module", params=["auto", "never"])
def settings(request):
    return {"AMPLIFIER_SANDBOX__CGROUPS": request.param}


@pytest.fixture(scope="module")
def mallory(server):
    caller = server.tenant("mallory", **FREE)
    caller.timeout_seconds = 60
    install(caller, evil_archive())
    return caller


def left(server, main: int, marker: str) -> list[int]:
    found = []
    for pid in server.sandbox_of(main):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if marker in file.read().decode(errors="replace"):
                    found.append(pid)
        except OSError:
            continue
    return found


def written(attack: str, *, by_module: bool) -> tuple[str, str]:
    marker = f"{secrets.randbelow(10**12):012d}"
    code = attack.format(by_module=by_module, shells_parent=SHELLS_PARENT, marker=marker)
    return code, marker


def still_written(server, session: str, marker: str) -> bool:
    """Whether what forks on writes on in the session's folder; it does so thousands of times a second."""
    found = next((server.data_dir / "runtimes").glob(f"*/workspace/{session}/*{marker}"), None)
    if found is None:
        return False
    before = found.stat().st_size
    return eventually(lambda: found.stat().st_size != before, 0.5) is not None


@pytest.mark.parametrize("attack", [LEAVES_ONE, FORKS_ON], ids=["one that hides", "one that forks on and on"])
def test_nothing_outlives_a_command_that_killed_its_supervisor(server, mallory, attack):
    session = mallory.session()
    mallory.shell(session, "true")
    main = server.runtime_of(session)
    code, marker = written(attack, by_module=False)
    mallory.tool(session, "bash", command=f"python3 - <<'THE_END'\n{code}\nTHE_END")
    assert left(server, main, marker) == []
    assert not still_written(server, session, marker)
    assert "42" in mallory.shell(session, "echo $((6*7))")


@pytest.mark.parametrize("attack", [LEAVES_ONE, FORKS_ON], ids=["one that hides", "one that forks on and on"])
def test_nothing_outlives_a_sessions_own_process_that_killed_its_supervisor(server, mallory, attack):
    one = attacker(mallory, "module")
    one.found("found['x'] = 1")
    main = server.runtime_of(one.session_id)
    code, marker = written(attack, by_module=True)
    answer = mallory.execute(one.session_id, one.prompt(code))
    assert answer.code == "module_failed"
    assert left(server, main, marker) == []
    assert not still_written(server, one.session_id, marker)


def test_nothing_that_a_module_hid_outlives_its_session(server, mallory):
    one = attacker(mallory, "module")
    one.found("found['x'] = 1")
    main = server.runtime_of(one.session_id)
    code, marker = written(LEAVES_ONE.replace("os.kill(supervisor", "0 and os.kill(supervisor"), by_module=True)
    one.found(code)
    assert left(server, main, marker) != []
    assert mallory.call("DELETE", f"/v1/sessions/{one.session_id}").status == 204
    assert left(server, main, marker) == []
