"""Sessions with modules from outside, in real sandboxes: each has a process of its own, whose end is its own."""

import os
import signal
import threading

import pytest

from tests.system.evil import attacker, evil_archive, install
from tests.system.server import FREE, eventually

EXPECTED_ERRORS = ("module_failed", "runtime_lost")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def settings():
    return {"AMPLIFIER_SANDBOX__MEMORY": "400MiB"}


@pytest.fixture
def mallory(server):
    caller = server.tenant("mallory", **FREE)
    caller.timeout_seconds = 60
    install(caller, evil_archive())
    return caller


def of(server, attack):
    """The session's own process, by its number outside."""
    main = server.runtime_of(attack.session_id)
    found = [
        pid
        for pid in server.sandbox_of(main)
        if _cwd(pid) == attack.session_id and pid != main and "amplifier_api_server.runtime" in _command(pid)
    ]
    return [pid for pid in found if "supervisor" not in _command(pid)]


def _cwd(pid):
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return ""


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def test_an_isolated_session_holds_a_turn_with_its_modules_tool_and_goes_on_after_suspension(server, mallory):
    one = attacker(mallory, "module")
    assert one.found("found['pid'] = os.getpid() if 'os' in dir() else __import__('os').getpid()")["pid"] > 2
    before = mallory.messages(one.session_id)
    os.kill(server.runtime_of(one.session_id), signal.SIGKILL)
    assert eventually(lambda: mallory.status(one.session_id) == "suspended")
    assert one.found("found['x'] = 1") == {"x": 1}
    assert mallory.messages(one.session_id)[: len(before)] == before


def test_two_collections_with_one_module_id_and_different_code_live_side_by_side(server):
    caller = server.tenant("twice", **FREE)
    first = evil_archive()
    install(caller, first)
    one = attacker(caller, "module")
    assert one.found("found['x'] = 1") == {"x": 1}
    caller.call("DELETE", "/v1/collections/evil")
    install(caller, _other(first))
    two = attacker(caller, "module")
    assert two.found("found['x'] = 2") == {"other": True}
    assert one.found("found['x'] = 3") == {"x": 3}


def _other(zipped):
    """The same collection, whose tool says something else."""
    import io
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            text = old.read(name).decode()
            new.writestr(name, text.replace('json.dumps(scope["found"])', 'json.dumps({"other": True})'))
    return made.getvalue()


HARM = {
    "exits": ("import os\nos._exit(3)", "exited with status 3"),
    "kills itself": ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "is greedy": (
        "held = []\nimport mmap\nwhile True:\n    m = mmap.mmap(-1, 8 << 20)\n    m.write(b'x' * (8 << 20))\n    held.append(m)",
        "its process was killed by SIGKILL",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_module_that_ends_its_process_fails_its_own_turn_alone(server, mallory, harm):
    code, why = HARM[harm]
    victim, sibling, plain = attacker(mallory, "module"), attacker(mallory, "module"), mallory.session()
    victim.found("found['x'] = 1")
    kept, main = mallory.messages(victim.session_id), server.runtime_of(victim.session_id)
    assert server.runtime_of(sibling.session_id) == main
    with mallory.stream(sibling.session_id, "stream 80 at 20/s") as running:
        first = running.take(1)
        events = mallory.asked(victim.session_id, victim.prompt(code))
        rest = running.rest()
    last = events[-1]
    assert (last.name, last.data["code"]) == ("error", "module_failed"), last
    assert why in last.data["detail"]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert (first + rest)[-1].name == "complete"
    assert mallory.ask(plain, "are you well?")["response"]
    assert sibling.found("found['x'] = 2") == {"x": 2}
    assert mallory.messages(victim.session_id) == kept
    # It goes on in the same sandbox, with its transcript.
    assert victim.found("found['x'] = 3") == {"x": 3}
    assert server.runtime_of(victim.session_id) == main
    assert mallory.messages(victim.session_id)[: len(kept)] == kept


def test_its_process_killed_between_turns_is_not_noticed(server, mallory):
    one = attacker(mallory, "module")
    one.found("found['x'] = 1")
    (pid,) = of(server, one)
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: of(server, one) == [])
    assert eventually(lambda: _goes_on(one))
    assert len(of(server, one)) == 1


def _goes_on(one):
    answer = one.caller.execute(one.session_id, one.prompt("found['x'] = 2"))
    return answer.status == 200


def test_its_process_killed_in_mid_turn_is_told_and_what_was_counted_is_kept(server, mallory):
    one = attacker(mallory, "module")
    one.found("found['x'] = 1")
    with mallory.stream(one.session_id, "stream 400 at 40/s") as stream:
        stream.take(3)
        (pid,) = of(server, one)
        os.kill(pid, signal.SIGKILL)
        last = stream.rest()[-1]
    assert (last.name, last.data["code"]) == ("error", "module_failed")
    assert last.data["usage"]["total_tokens"] > 0
    assert one.found("found['x'] = 2") == {"x": 2}


def test_what_it_forks_ends_with_its_session(server, mallory):
    one = attacker(mallory, "module")
    fork = """
    import os
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            import time
            time.sleep(600)
        os._exit(0)
    """
    one.found(fork)
    main = server.runtime_of(one.session_id)
    assert len(server.sandbox_of(main)) > 3
    mallory.call("DELETE", f"/v1/sessions/{one.session_id}")
    assert eventually(lambda: len(server.sandbox_of(main)) <= 2), server.sandbox_of(main)


def test_a_module_that_never_returns_when_imported_is_told_and_the_tenant_goes_on(server):
    caller = server.tenant("slow", **FREE)
    caller.timeout_seconds = 60
    plain = caller.session()
    stuck = _with_first_line(
        evil_archive(), "import os, time\nif 'AMPLIFIER_MAIN_PID' in os.environ: time.sleep(600)\n"
    )
    install(caller, stuck)
    answers = []
    thread = threading.Thread(
        target=lambda: answers.append(caller.call("POST", "/v1/sessions", {"profile": "evil:agent"}))
    )
    thread.start()
    assert caller.ask(plain, "are you well?")["response"]
    thread.join(60)
    assert (answers[0].status, answers[0].code) == (422, "module_failed")
    assert "longer than" in answers[0].json["detail"]
    assert caller.ask(plain, "and now?")["response"]


def _with_first_line(zipped, line):
    import io
    import zipfile

    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            text = old.read(name).decode()
            new.writestr(name, line + text if name.endswith("__init__.py") else text)
    return made.getvalue()


def test_the_sdk_door_leads_to_the_models_and_nowhere_else(server, me):
    session = me.session()
    found = me.shell(session, "curl -s -m 5 https://pypi.org; echo code $?; env | grep -c API_KEY")
    assert "code 0" not in found
    address = me.shell(session, "echo $OPENAI_BASE_URL")
    assert "127.0.0.1" in address
    run = me.tool(session, "bash", command='curl -s -m 5 -o /dev/null -w "%{http_code}" ${OPENAI_BASE_URL%/v1}/fetch')
    assert run["output"]["stdout"] in ("404", "")  # "" where there is no curl


def test_where_a_sandbox_has_no_memory_for_one_more_process_an_idle_one_makes_room_or_another_sandbox_is_taken(
    make_server,
):
    server = make_server(AMPLIFIER_SANDBOX__MEMORY="170MiB").start()
    caller = server.tenant("many", **FREE)
    install(caller, evil_archive())
    attacks = [attacker(caller, "module") for _ in range(3)]
    assert [one.found("found['x'] = 1") for one in attacks] == [{"x": 1}] * 3
    assert len({server.runtime_of(one.session_id) for one in attacks}) == 1
    busy = [caller.stream(one.session_id, "stream 200 at 20/s") for one in attacks[:2]]
    for stream in busy:
        stream.take(1)
    assert attacks[2].found("found['x'] = 2") == {"x": 2}
    assert server.runtime_of(attacks[2].session_id) != server.runtime_of(attacks[0].session_id)
    for stream in busy:
        stream.take(1)
        stream.close()
    server.stop()
