"""The runtime as the launcher starts it: a process of its own, with descriptors handed in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.conftest import text_of
from tests.runtime.fake_gateway import FakeGateway, calls, chunk, says
from tests.runtime.processes import Process, started_runtime


@pytest.fixture
def started(short_tmp: Path, gateway: FakeGateway) -> Iterator[Process]:
    with started_runtime(short_tmp, gateway) as process:
        yield process


async def test_a_turn_with_a_tool_runs_in_the_real_process(started: Process):
    runtime = started.driver
    await runtime.claim()
    await runtime.open()
    runtime.gateway.scripts.extend(
        [calls(("bash", {"command": "echo hi; ls -l /proc/self/fd | grep -c socket"})), says("it ", "said hi")]
    )
    events = await runtime.stream()
    assert (text_of(events), events[-1].name) == ("it said hi", "complete")
    output = [event.data for event in events if event.name == "tool_call"][-1]["output"]
    assert output["stdout"] == "hi\n0\n"


async def test_a_tool_can_not_read_the_runtimes_memory_or_descriptors(started: Process):
    runtime = started.driver
    await runtime.claim()
    pid = started.process.pid
    if os.getuid() == 0:
        status = Path(
            f"/proc/{pid}/environ"
        ).stat()  # root may read everything; who owns it tells that it is not dumpable
        assert status.st_uid == 0
    else:
        _, outcome = await runtime.call(
            "POST", "/tools/bash", {"input": {"command": f"cat /proc/{pid}/environ; ls /proc/{pid}/fd"}}
        )
        assert "Permission denied" in outcome["output"]["stderr"]


async def test_a_module_that_prints_disturbs_nothing(started: Process):
    os.kill(started.process.pid, 0)
    await started.driver.claim()
    started.process.terminate()
    await started.ended(60)
    assert started.process.communicate()[0] == b""


async def test_sigterm_ends_running_turns_with_a_checkpoint_and_the_process_soon(started: Process):
    runtime = started.driver
    await runtime.claim()
    await runtime.open()

    async def silent(body, write):
        await write(chunk({"content": "a"}))
        await asyncio.Event().wait()

    runtime.gateway.scripts.append(silent)
    async with runtime.streaming("POST", "/sessions/sess_1/turns/req_a", {"prompt": "x"}) as events:
        await anext(events)
        started.process.send_signal(signal.SIGTERM)
        (last,) = [event async for event in events]
    assert last.data["code"] == "runtime_stopping"
    assert await started.ended(60) == 0
    assert runtime.gateway.checkpoints[0]["failure"]["code"] == "runtime_stopping"


async def test_sigterm_in_bash_leaves_no_process(started: Process):
    runtime = started.driver
    await runtime.claim()
    await runtime.open()
    runtime.gateway.scripts.append(calls(("bash", {"command": "(setsid sleep 300 & echo $! > pid); sleep 300"})))
    pid_file = runtime.workspace / "sess_1" / "pid"
    turn = asyncio.create_task(runtime.stream())
    while not pid_file.exists() or not pid_file.read_text():
        await asyncio.sleep(0.01)
    started.process.kill()
    await started.ended(60)
    async with asyncio.timeout(60):
        while Path(f"/proc/{int(pid_file.read_text())}").exists():
            await asyncio.sleep(0.01)
    turn.cancel()
    await asyncio.gather(turn, return_exceptions=True)


def test_a_missing_environment_is_told_and_ends_the_start():
    done = subprocess.run(
        [sys.executable, "-m", "amplifier_api_server.runtime"], env={}, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 2
    assert b"AMPLIFIER_LISTEN_FD" in done.stderr


def test_the_runtime_imports_nothing_heavy_and_nothing_of_the_control_plane():
    code = (
        "import sys, amplifier_api_server.runtime.serving; "
        "print([m for m in sys.modules if m.split('.')[0] in ('uvicorn', 'fastapi', 'httpx', 'httpx2', 'sqlmodel', 'starlette', 'openai') "
        "or m.startswith(('amplifier_api_server.tenants', 'amplifier_api_server.control_plane'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout == "[]\n", done.stderr
