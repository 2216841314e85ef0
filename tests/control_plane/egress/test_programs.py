"""Programs on strangers' bytes: bounded in time, size and memory, with nothing of the server's, and ended whole."""

import asyncio
import os
import signal

import pytest

from amplifier_api_server.control_plane.egress.programs import (
    Bounds,
    Programs,
    RunTooLarge,
    RunTooLong,
    give_to_nobody,
    size_of,
)

BOUNDS = Bounds(seconds=20, folder_bytes=10**6, file_bytes=10**6)


@pytest.fixture
def run(tmp_path):
    programs = Programs()
    work = tmp_path / "work"
    work.mkdir()

    async def run(script, *, bounds=BOUNDS, **more):
        out = tmp_path / "out"
        command = ["/bin/sh", "-c", script]
        ran = await programs.run(
            command, cwd=work, out=out, environment=more.pop("environment", {}), bounds=bounds, **more
        )
        return ran, out.read_text()

    run.work = work
    yield run
    programs.close()


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_what_a_program_says_and_how_it_ends_is_told(run, tmp_path):
    given = tmp_path / "given"
    given.write_text("input")
    ran, out = await run("cat; echo wrong >&2; exit 3", given=given)
    assert (ran.status, ran.error, out) == (3, "wrong\n", "input")


async def test_nothing_of_the_servers_environment_is_there(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    _, out = await run("env", environment={"GIVEN": "1"})
    names = {line.partition("=")[0] for line in out.splitlines()}
    assert names <= {"PATH", "LC_ALL", "GIVEN", "PWD", "OLDPWD", "SHLVL", "_"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_where_the_server_is_root_it_runs_as_nobody(run):
    give_to_nobody(run.work)
    ran, out = await run("id -u; id -G; echo x > made; cat /etc/shadow", unprivileged=True)
    assert out.split() == ["65534", "65534"]
    assert (run.work / "made").exists()
    assert ran.status != 0


async def test_one_that_takes_too_long_is_ended_with_all_that_it_started(run):
    with pytest.raises(RunTooLong):
        await run("sleep 60 & echo $! > child; wait", bounds=Bounds(0.5, 10**6, 10**6))
    assert not is_running(int((run.work / "child").read_text()))


async def test_what_it_leaves_running_is_ended(run):
    await run("sleep 60 >/dev/null 2>&1 & echo $! > child")
    pid = int((run.work / "child").read_text())
    for _ in range(100):
        if not is_running(pid):
            return
        await asyncio.sleep(0.02)
    pytest.fail("it still runs")


async def test_one_that_fills_its_folder_is_ended(run):
    with pytest.raises(RunTooLarge):
        await run("i=0; while :; do i=$((i+1)); head -c 100000 /dev/zero > f$i; done")
    assert size_of(run.work) < 10**8


async def test_no_file_is_larger_than_allowed(run):
    ran, _ = await run("exec head -c 3000000 /dev/zero", bounds=Bounds(20, 10**9, 10**6))
    assert ran.status != 0


async def test_no_more_memory_than_allowed_is_had(run):
    bounds = Bounds(20, 10**6, 10**6, memory_bytes=200 * 1024**2)
    ran, _ = await run("head -c 400000000 /dev/zero | tail -c 400000000 > /dev/null || exit 9", bounds=bounds)
    assert ran.status == 9


async def test_a_cancelled_run_has_ended_when_it_is_over(run):
    task = asyncio.ensure_future(run("echo $$ > pid; exec sleep 600"))
    while not (run.work / "pid").exists() or not (run.work / "pid").read_text():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((run.work / "pid").read_text()), signal.SIG_DFL)
