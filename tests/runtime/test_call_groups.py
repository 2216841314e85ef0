"""What a launcher hands in for groups, who has which of them, and who may send a signal to everybody."""

from __future__ import annotations

import asyncio
import os
import subprocess

import pytest

from amplifier_api_server.runtime.call_groups import OWN_PROCESS_GROUPS, CallGroups, Handed
from amplifier_api_server.runtime.protocol import Environment


@pytest.mark.parametrize(
    ("text", "handed"),
    [
        ("", Handed()),
        (";;", Handed()),
        ("3,4;5:6,7:8;9,1024", Handed((3, 4), ((5, 6), (7, 8)), 9, 1024)),
        (";5:6;", Handed((), ((5, 6),))),
    ],
)
def test_what_is_handed_in_is_read(text: str, handed: Handed) -> None:
    assert Handed.read(text) == handed
    assert Handed.read(handed.text) == handed


@pytest.mark.parametrize("text", ["1", "1;2", ";x:y;", ";5;", ";;9"])
def test_what_can_not_be_read_stops_the_start(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Handed.read(text)


def groups_of(calls: int) -> tuple[CallGroups, list[int]]:
    """Groups that are pipes: what is written can be read, and nothing is ever in them."""
    pipes = [os.pipe() for _ in range(2 * calls)]
    # An empty regular file stands for the processes of a group: reading gives none.
    procs = [os.open("/dev/null", os.O_RDWR) for _ in range(calls)]
    made = CallGroups(Handed((), tuple((procs[n], pipes[n][1]) for n in range(calls))))
    return made, [*procs, *(one for pair in pipes for one in pair)]


async def test_a_call_waits_while_as_many_run_as_there_are_groups() -> None:
    groups, opened = groups_of(2)  # of which one is for calls
    async with groups.call():
        waiting = asyncio.create_task(groups.call().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 60)
    for one in opened:
        os.close(one)


async def test_sessions_own_processes_have_groups_of_their_own_and_give_them_back() -> None:
    groups, opened = groups_of(4 * OWN_PROCESS_GROUPS)
    assert groups.most_own_processes == 2
    first, _ = groups.for_own_process(), groups.for_own_process()
    with pytest.raises(BlockingIOError):
        groups.for_own_process()
    environment, descriptors = first.to_hand_on()
    inside = CallGroups(Handed.read(environment[Environment.GROUPS]), is_main=False)
    assert len(inside.handed.calls) == OWN_PROCESS_GROUPS - 1
    assert set(descriptors) <= set(groups.handed.descriptors)
    await first.end()
    groups.for_own_process()
    for one in opened:
        os.close(one)


async def test_children_that_nobody_started_are_killed_and_others_are_not() -> None:
    groups = CallGroups(Handed())
    with subprocess.Popen(["/bin/sleep", "1000"]) as stray, subprocess.Popen(["/bin/sleep", "1000"]) as ours:
        groups.started = {*groups._strays()} - {stray.pid}
        await groups.end_strays()
        assert ours.poll() is None
        assert groups._strays() == []
        ours.kill()


def test_only_in_a_pid_namespace_of_its_own_everybody_may_be_killed() -> None:
    """The same variables outside of a sandbox, as tests and embedders have them, must never give that right."""
    assert not CallGroups.from_environment({Environment.GATEWAY_FD: "3"}, is_main=False)._is_sandboxed
