"""A session with modules from outside has a process of its own: it works like any other, and its end is its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.bundle_trees import Trees
from tests.runtime.conftest import Event, text_of
from tests.runtime.fake_gateway import FakeGateway, Write, calls, chunk, says
from tests.runtime.outside_modules import distribution, odd_image, odd_packages
from tests.runtime.processes import Process, started_runtime


@pytest.fixture
def started(short_tmp: Path, gateway: FakeGateway) -> Iterator[Process]:
    with started_runtime(short_tmp, gateway) as process:
        yield process


@pytest.fixture
def trees(started: Process) -> Trees:
    return Trees(started.driver.installed)


async def opened(started: Process, image: Any, session_id: str = "sess_1", **more: Any) -> dict[str, Any]:
    body = {"profile": f"{image.name}:{image.name}", "images": [image.model_dump()], **more}
    return await started.driver.open(session_id, **body)


async def odd(started: Process, code: str, session_id: str = "sess_1") -> Any:
    """What `code` found in the session's own process."""
    started.driver.gateway.scripts.extend([calls(("odd", {"code": code})), says("done")])
    events = await started.driver.stream(session_id=session_id)
    done = [event.data for event in events if event.name == "tool_call"][-1]
    assert done["status"] == "completed", events
    return json.loads(done["output"])


async def broken(started: Process, code: str, session_id: str = "sess_1") -> list[Event]:
    """The stream of a turn that does not survive `code`."""
    started.driver.gateway.scripts.append(calls(("odd", {"code": code}), text="first "))
    return await started.driver.stream(session_id=session_id)


async def until(check: Any, within_seconds: float = 10) -> None:
    async with asyncio.timeout(within_seconds):
        while not check():
            await asyncio.sleep(0.02)


async def test_a_session_with_a_module_from_outside_runs_it_in_a_process_of_its_own(started: Process, trees: Trees):
    await started.driver.claim()
    told = await opened(started, odd_image(trees))
    assert told["plan"]["isolated"] is True
    found = await odd(started, "found.update(pid=os.getpid(), cwd=os.getcwd(), home=os.environ['HOME'])")
    assert [found["pid"]] == started.own()
    assert found["cwd"] == str(started.driver.workspace / "sess_1")
    assert found["home"] != os.environ["HOME"]
    _, health = await started.driver.call("GET", "/health")
    assert (health["open_sessions"], health["running_turns"]) == (["sess_1"], [])


async def test_its_events_are_those_of_any_session_and_can_be_read_again(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    started.driver.gateway.scripts.append(says("a", "b", "c"))
    events = await started.driver.stream(request_id="req_a")
    assert (text_of(events), events[-1].name) == ("abc", "complete")
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert await started.driver.replay("req_a") == events
    assert await started.driver.replay("req_a", after=2) == events[2:]
    assert (await started.driver.ask(request_id="req_b"))["response"] == "Hello world"


async def test_sessions_without_modules_from_outside_have_none(started: Process):
    await started.driver.claim()
    await started.driver.open()
    assert started.own() == []


async def test_two_collections_with_one_module_id_live_side_by_side(started: Process, trees: Trees):
    await started.driver.claim()
    first = odd_image(trees, odd_packages("1"), "herons")
    second = odd_image(trees, odd_packages("2"), "wrens")
    await opened(started, first, "sess_1")
    await opened(started, second, "sess_2")
    assert await odd(started, "found['version'] = VERSION", "sess_1") == {"version": "1"}
    assert await odd(started, "found['version'] = VERSION", "sess_2") == {"version": "2"}
    assert len(started.own()) == 2


async def test_modules_get_the_versions_that_were_installed_for_them(started: Process, trees: Trees):
    """httpx is among the server's own packages too, for its tests; an image that brings another one gets that."""
    await started.driver.claim()
    packages = {"httpx/__init__.py": "__version__ = 'theirs'\n", **distribution("httpx", "99")}
    await opened(started, odd_image(trees, odd_packages() | packages))
    code = "import httpx, importlib.metadata as m; found.update(module=httpx.__version__, version=m.version('httpx'))"
    assert await odd(started, code) == {"module": "theirs", "version": "99"}


async def test_an_image_does_not_take_the_place_of_what_the_runtime_is_made_of(started: Process, trees: Trees):
    await started.driver.claim()
    bad = "raise RuntimeError('not the real one')\n"
    names = ("amplifier_core", "pydantic", "httptools", "yaml", "asyncio", "json", "amplifier_api_server")
    await opened(started, odd_image(trees, odd_packages() | {f"{name}/__init__.py": bad for name in names}))
    code = "import yaml, httptools, pydantic, amplifier_core, json; found['json'] = json.__file__"
    assert "/c/" not in (await odd(started, code))["json"]
    assert (await started.driver.ask())["response"] == "Hello world"


async def test_no_path_leads_to_its_socket_and_only_the_main_process_is_answered(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    code = """
import socket
listener = int(os.environ['AMPLIFIER_LISTEN_FD'])
path = socket.socket(fileno=os.dup(listener)).getsockname()
found['exists'] = os.path.exists(path)
"""
    assert await odd(started, code) == {"exists": False}


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("os._exit(3)", "exited with status 3"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("print('heron!', file=sys.stderr, flush=True); os._exit(1)", "heron!"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
    ],
)
async def test_a_turn_whose_process_ended_is_told_failed_with_why(started: Process, trees: Trees, code: str, why: str):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    await started.driver.open("sess_2")
    events = await broken(started, code)
    last = events[-1]
    assert (last.name, last.data["code"]) == ("error", "module_failed")
    assert why in last.data["detail"]
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    checkpoint = started.driver.gateway.checkpoints[-1]
    assert (checkpoint["status"], checkpoint["messages"]) == ("failed", [])
    # The session is gone from here, its sibling is not; it can be opened again at once.
    status, failure = await started.driver.call("POST", "/sessions/sess_1/turns/req_z", {"prompt": "x"})
    assert (status, failure["code"]) == (404, "no_session")
    assert (await started.driver.ask(session_id="sess_2"))["response"] == "Hello world"
    await opened(started, trees.images[0])
    assert (await odd(started, "found['ok'] = 1")) == {"ok": 1}


async def test_a_turn_that_nobody_streams_is_told_failed_too(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    started.driver.gateway.scripts.append(calls(("odd", {"code": "os._exit(3)"})))
    result = await started.driver.ask()
    assert (result["status"], result["problem"]["code"]) == ("failed", "module_failed")


async def test_its_end_between_turns_is_noticed(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    (pid,) = started.own()
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (await started.driver.call("GET", "/health"))[1]["open_sessions"]:
            await asyncio.sleep(0.01)
    status, failure = await started.driver.call("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"})
    assert (status, failure["code"]) == (404, "no_session")


@pytest.mark.timeout(60)
async def test_a_module_that_blocks_its_event_loop_is_ended_and_its_sibling_goes_on(started: Process, trees: Trees):
    await started.driver.claim(module_silence_seconds=4)
    await opened(started, odd_image(trees))
    await started.driver.open("sess_2")
    turn = asyncio.create_task(broken(started, "import time; time.sleep(3600)"))
    await until(lambda: started.driver.gateway.requests)
    assert (await started.driver.ask(session_id="sess_2"))["response"] == "Hello world"
    async with asyncio.timeout(60):
        last = (await turn)[-1]
    assert (last.name, last.data["code"]) == ("error", "module_failed")
    assert "did not answer for 4 s: something in it blocks the event loop" in last.data["detail"]
    assert started.own() == []


DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('pid', 'w').write(str(os.getpid()))
        import time; time.sleep(300)
    os._exit(0)
while not os.path.exists('pid') or not open('pid').read(): pass
"""


@pytest.mark.parametrize("end", ["closed", "killed", "runtime killed"])
async def test_nothing_that_it_forked_outlives_it(started: Process, trees: Trees, end: str):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    await odd(started, DAEMON)
    pid = int((started.driver.workspace / "sess_1" / "pid").read_text())
    assert Path(f"/proc/{pid}").exists()
    if end == "closed":
        assert (await started.driver.call_raw("DELETE", "/sessions/sess_1"))[0] == 204
        assert started.descendants() == []
    elif end == "killed":
        os.kill(started.own()[0], signal.SIGKILL)
    else:
        below = started.descendants()
        started.process.kill()
        await until(lambda: not any(_is_alive(one) for one in below))
    await until(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("import os; os._exit(4)\n", "exited with status 4"),
        ("raise ImportError('no heron')\n", "no heron"),
        ("import sys; sys.exit('away')\n", "tried to exit"),
    ],
)
async def test_a_module_that_fails_when_imported_is_told_and_nothing_is_left(
    started: Process, trees: Trees, before: str, why: str
):
    await started.driver.claim()
    image = odd_image(trees, odd_packages(before=before))
    body = {"profile": "watch:watch", "images": [image.model_dump()]}
    status, failure = await started.driver.call("PUT", "/sessions/sess_1", body)
    assert (status, failure["code"]) == (422, "module_failed")
    assert why in failure["detail"]
    await until(lambda: started.descendants() == [])


async def test_a_module_that_patches_core_and_the_runtime_harms_its_own_session_alone(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    await started.driver.open("sess_2")
    code = """
import amplifier_core, amplifier_api_server.runtime.turns as turns
amplifier_core.AmplifierSession.execute = None
turns.deliver = None
"""
    events = await broken(started, code)
    assert events[-1].name == "error"
    assert (await started.driver.ask(session_id="sess_2"))["response"] == "Hello world"


async def test_sigterm_ends_its_turn_with_a_checkpoint_and_both_processes_soon(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))

    async def silent(body: Any, write: Any) -> None:
        await write(chunk({"content": "a"}))
        await asyncio.Event().wait()

    started.driver.gateway.scripts.append(silent)
    async with started.driver.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        below = started.descendants()
        started.process.send_signal(signal.SIGTERM)
        (last,) = [event async for event in events]
    assert last.data["code"] == "runtime_stopping"
    assert await started.ended(3) == 0
    await until(lambda: not any(_is_alive(pid) for pid in below), 3)


async def test_a_flood_of_prints_neither_blocks_it_nor_drowns_the_runtimes_log(started: Process, trees: Trees):
    await started.driver.claim()
    await opened(started, odd_image(trees))
    code = "for _ in range(2000): print('x' * 1000, file=sys.stderr)\nprint('y' * 1000000)\nfound['ok'] = 1"
    assert await odd(started, code) == {"ok": 1}
    started.process.terminate()
    assert len(started.process.communicate()[1]) < 100_000


async def test_what_it_may_hold_is_a_share_of_the_sandboxes_memory(short_tmp: Path, gateway: FakeGateway):
    limits = "resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))"
    with started_runtime(short_tmp, gateway, limits) as started:
        trees = Trees(started.driver.installed)
        await started.driver.claim()
        await opened(started, odd_image(trees))
        code = """
try:
    held = bytearray(400 << 20)
    found['held'] = True
except MemoryError:
    found['held'] = False
"""
        assert await odd(started, code) == {"held": False}
        shell = "python3 -c 'len(bytearray(400 << 20)); print(42)'"
        started.driver.gateway.scripts.extend([calls(("bash", {"command": shell})), says("done")])
        events = await started.driver.stream()
        assert [event.data for event in events if event.name == "tool_call"][-1]["output"]["stdout"] == "42\n"


async def test_an_idle_process_makes_room_and_none_whose_turn_runs(short_tmp: Path, gateway: FakeGateway):
    limits = "resource.setrlimit(resource.RLIMIT_DATA, (200 << 20, 200 << 20))"
    with started_runtime(short_tmp, gateway, limits) as started:
        image = odd_image(Trees(started.driver.installed))
        await started.driver.claim()
        await opened(started, image, "sess_1")
        await opened(started, image, "sess_2")
        await started.driver.ask("you are used now", "sess_1")
        await opened(started, image, "sess_3")
        assert (await started.driver.call("GET", "/health"))[1]["open_sessions"] == ["sess_1", "sess_3"]
        gateway.default = silent
        async with contextlib.AsyncExitStack() as stack:
            for session_id in ("sess_1", "sess_3"):
                path = f"/sessions/{session_id}/turns/{started.driver.next_id()}"
                events = await stack.enter_async_context(started.driver.streaming("POST", path, {"prompt": "x"}))
                await anext(events)
            body = {"profile": "watch:watch", "images": [image.model_dump()]}
            status, failure = await started.driver.call("PUT", "/sessions/sess_4", body)
            assert (status, failure["code"]) == (503, "too_many_processes")


async def silent(body: dict[str, Any], write: Write) -> None:
    await write(chunk({"content": "a"}))
    await asyncio.Event().wait()


async def test_a_session_goes_on_from_its_transcript_in_a_new_process(started: Process, trees: Trees):
    await started.driver.claim()
    image = odd_image(trees)
    told = await opened(started, image)
    await started.driver.ask("remember the heron")
    checkpoint = started.driver.gateway.checkpoints[-1]
    await started.driver.call_raw("DELETE", "/sessions/sess_1")
    again = {"plan": told["plan"], "images": [image.model_dump()], "transcript": checkpoint["messages"]}
    await started.driver.open("sess_1", **again, turn_number=1)
    await started.driver.ask("which bird?")
    assert "remember the heron" in json.dumps(started.driver.gateway.requests[-1])
