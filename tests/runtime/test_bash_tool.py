from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from amplifier_api_server.runtime.modules.tool_bash import BashTool


@pytest.fixture
def bash(tmp_path: Path) -> BashTool:
    return BashTool(tmp_path / "w", timeout_seconds=10, max_timeout_seconds=20, cpu_seconds=2)


async def ran(bash: BashTool, command: str, **more: float) -> dict:
    result = await bash.execute({"command": command, **more})
    assert result.success, result
    return result.output


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def test_a_command_gives_its_output_and_its_exit_code(bash: BashTool):
    assert await ran(bash, "echo out; echo err >&2; exit 7") == {"exit_code": 7, "stdout": "out\n", "stderr": "err\n"}
    assert (await ran(bash, "kill -TERM $$"))["exit_code"] == 128 + 15
    assert (await ran(bash, "kill -9 $$"))["exit_code"] == 128 + 9


async def test_it_runs_in_its_folder_without_input_environment_or_descriptors(
    bash: BashTool, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("SECRET", "heron")
    leak = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(leak, True)
    output = (await ran(bash, "pwd; cat; env; ls /proc/self/fd"))["stdout"]
    os.close(leak)
    assert output.startswith(f"{tmp_path}/w\n")
    assert "heron" not in output
    assert output.split("\n")[-5:-1] == ["0", "1", "2", "3"]


DAEMON = """
import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open("pid", "w").write(str(os.getpid()))
time.sleep(300)
"""


@pytest.mark.parametrize("end", ["", "; sleep 300"])
async def test_a_daemon_that_forked_twice_dies_with_its_command(bash: BashTool, tmp_path: Path, end: str):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "daemon.py").write_text(DAEMON)
    command = "(python3 daemon.py >/dev/null 2>&1 </dev/null &); while [ ! -s pid ]; do sleep 0.01; done; cat pid" + end
    result = await bash.execute({"command": command, "timeout": 4 if end else 10})
    pid = int((tmp_path / "w" / "pid").read_text())
    assert result.success is not bool(end)
    assert not is_alive(pid)


async def test_a_background_process_that_holds_the_output_does_not_hold_the_call(bash: BashTool):
    assert (await ran(bash, "sleep 300 & echo done"))["stdout"] == "done\n"


async def test_a_timeout_kills_everything_and_tells_what_was_written(bash: BashTool):
    result = await bash.execute({"command": "echo begun; trap '' TERM; sleep 300 & sleep 300", "timeout": 0.3})
    assert not result.success
    assert result.output["stdout"] == "begun\n"
    assert "0.3 s" in result.error["message"]


async def test_cancelling_kills_the_tree_at_once(bash: BashTool, tmp_path: Path):
    task = asyncio.create_task(bash.execute({"command": "(setsid sleep 300 & echo $! > pid); sleep 300"}))
    pid_file = tmp_path / "w" / "pid"
    while not pid_file.exists() or not pid_file.read_text():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(int(pid_file.read_text()))


async def test_processor_time_is_limited(bash: BashTool):
    output = await ran(bash, "while :; do :; done")
    assert output["exit_code"] == 128 + 9


async def test_endless_output_is_bounded_in_memory_and_answer(bash: BashTool):
    output = await ran(bash, "head -c 50000000 /dev/zero | tr '\\0' x; head -c 1000000 /dev/zero >&2")
    assert len(output["stdout"]) < 40_000
    assert "bytes left out" in output["stdout"]
    assert len(output["stderr"]) < 10_000


@pytest.mark.parametrize("text", ["漢" * 60_000, "é" * 60_000, "x" + "🙂" * 40_000, "xy" + "🙂" * 40_000])
async def test_long_output_is_not_cut_within_a_character(bash: BashTool, tmp_path: Path, text: str):
    (tmp_path / "long").write_text(text)
    output = (await ran(bash, "cat ../long"))["stdout"]
    head, tail = output.split("\n[... ")
    left_out, tail = tail.split(" bytes left out ...]\n")
    assert "\ufffd" not in output
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len((head + tail).encode()) + int(left_out) == len(text.encode())


async def test_the_loop_is_free_while_a_command_runs(bash: BashTool):
    task = asyncio.create_task(ran(bash, "sleep 0.3"))
    longest, last = 0.0, time.monotonic()
    while not task.done():
        await asyncio.sleep(0.005)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert longest < 0.2


async def test_no_descriptor_is_left_open_by_many_calls(bash: BashTool):
    await ran(bash, "true")
    before = len(os.listdir("/proc/self/fd"))
    await asyncio.gather(*(ran(bash, "true") for _ in range(10)))
    await bash.execute({"command": "sleep 9", "timeout": 0.05})
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"command": ""},
        {"command": "x\0y"},
        {"command": "x" * 200_000},
        {"command": "true", "timeout": -1},
        {"command": "true", "timeout": "x"},
    ],
)
async def test_wrong_inputs_say_what_is_wrong(bash: BashTool, given: dict):
    result = await bash.execute(given)
    assert not result.success
    assert result.error["message"]
