"""What every launcher must do, whatever it starts. A launcher's own tests subclass `LauncherSuite` and give it a `kit`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

import pytest

from amplifier_api_server.control_plane.pods.launcher import Launcher, LaunchError, Observed
from amplifier_api_server.tenants.ids import (
    RuntimeId,
    SessionId,
    new_runtime_id,
    new_session_id,
    new_tenant_id,
)


class Kit(Protocol):
    """A launcher, and how to reach what it started from a test."""

    launcher: Launcher
    keeps_files: bool  # whether write and read work

    async def kill(self, runtime_id: RuntimeId) -> None:
        """End the runtime from outside, as an accident would."""

    async def answers(self, runtime_id: RuntimeId) -> bool:
        """Whether it answers on its address."""

    async def write(self, runtime_id: RuntimeId, session_id: SessionId, name: str, text: str) -> None:
        """Write a file in a session's folder, from inside."""

    async def read(self, runtime_id: RuntimeId, session_id: SessionId, name: str) -> str | None:
        """Read one, from inside; None when there is none."""


async def observed(launcher: Launcher, runtime_id: RuntimeId) -> Observed | None:
    found = [one for one in await launcher.list() if one.id == runtime_id]
    assert len(found) <= 1
    return found[0] if found else None


def woken(launcher: Launcher) -> asyncio.Queue[RuntimeId]:
    queue: asyncio.Queue[RuntimeId] = asyncio.Queue()
    launcher.on_exit(queue.put_nowait)
    return queue


class LauncherSuite:
    async def test_a_started_runtime_answers_and_is_listed(self, kit: Kit) -> None:
        runtime_id = new_runtime_id()
        await kit.launcher.start(runtime_id)
        seen = await observed(kit.launcher, runtime_id)
        assert seen is not None
        assert seen.running is True
        assert seen.address == kit.launcher.address(runtime_id)
        assert await kit.answers(runtime_id)

    async def test_starting_twice_is_starting_once(self, kit: Kit) -> None:
        runtime_id = new_runtime_id()
        await asyncio.gather(kit.launcher.start(runtime_id), kit.launcher.start(runtime_id))
        await kit.launcher.start(runtime_id)
        assert [one.id for one in await kit.launcher.list()] == [runtime_id]

    async def test_a_stopped_runtime_leaves_nothing(self, kit: Kit) -> None:
        runtime_id = new_runtime_id()
        await kit.launcher.start(runtime_id)
        await kit.launcher.stop(runtime_id, "the test is done")
        assert await kit.launcher.list() == []
        assert kit.launcher.address(runtime_id) is None

    async def test_stopping_what_is_not_there_is_no_error(self, kit: Kit) -> None:
        await kit.launcher.stop(new_runtime_id(), "it never was")
        runtime_id = new_runtime_id()
        await kit.launcher.start(runtime_id)
        await asyncio.gather(*(kit.launcher.stop(runtime_id, "twice") for _ in range(2)))
        assert await kit.launcher.list() == []

    async def test_a_killed_runtime_is_told_of_and_listed_as_ended_until_it_is_stopped(self, kit: Kit) -> None:
        wakes = woken(kit.launcher)
        runtime_id = new_runtime_id()
        await kit.launcher.start(runtime_id)
        await kit.kill(runtime_id)
        assert await asyncio.wait_for(wakes.get(), 60) == runtime_id
        seen = await observed(kit.launcher, runtime_id)
        assert seen is not None
        assert seen.running is False
        assert seen.reason
        assert kit.launcher.address(runtime_id) is None
        await kit.launcher.stop(runtime_id, "it is gone")
        assert await kit.launcher.list() == []

    async def test_nothing_is_attached_to_or_installed_in_what_does_not_run(self, kit: Kit, tmp_path: Path) -> None:
        with pytest.raises(LaunchError):
            await kit.launcher.attach(new_runtime_id(), new_tenant_id(), new_session_id())
        with pytest.raises(LaunchError):
            await kit.launcher.install(new_runtime_id(), "abc123", str(tmp_path))

    async def test_detaching_and_forgetting_what_is_not_there_is_no_error(self, kit: Kit) -> None:
        await kit.launcher.detach(new_runtime_id(), new_tenant_id(), new_session_id())
        await kit.launcher.forget(new_tenant_id(), new_session_id())

    async def test_a_sessions_files_go_with_it_from_runtime_to_runtime(self, kit: Kit) -> None:
        first, second, tenant, session = new_runtime_id(), new_runtime_id(), new_tenant_id(), new_session_id()
        await kit.launcher.start(first)
        await kit.launcher.attach(first, tenant, session)
        await kit.launcher.attach(first, tenant, session)
        if not kit.keeps_files:
            pytest.skip("this launcher keeps no files")
        await kit.write(first, session, "notes.txt", "remember me")
        await kit.launcher.detach(first, tenant, session)
        assert await kit.read(first, session, "notes.txt") is None
        await kit.launcher.start(second)
        await kit.launcher.attach(second, tenant, session)
        assert await kit.read(second, session, "notes.txt") == "remember me"
        await kit.write(second, session, "notes.txt", "changed by the second")
        assert await kit.read(second, session, "notes.txt") == "changed by the second"

    async def test_a_killed_runtimes_sessions_can_be_attached_elsewhere(self, kit: Kit) -> None:
        first, second, tenant, session = new_runtime_id(), new_runtime_id(), new_tenant_id(), new_session_id()
        wakes = woken(kit.launcher)
        await kit.launcher.start(first)
        await kit.launcher.attach(first, tenant, session)
        if kit.keeps_files:
            await kit.write(first, session, "notes.txt", "remember me")
        await kit.kill(first)
        await asyncio.wait_for(wakes.get(), 60)
        await kit.launcher.start(second)
        await kit.launcher.attach(second, tenant, session)
        if kit.keeps_files:
            assert await kit.read(second, session, "notes.txt") == "remember me"

    async def test_a_copy_has_the_files_and_goes_its_own_way(self, kit: Kit) -> None:
        runtime, tenant, source, target = new_runtime_id(), new_tenant_id(), new_session_id(), new_session_id()
        await kit.launcher.start(runtime)
        await kit.launcher.attach(runtime, tenant, source)
        with pytest.raises(LaunchError, match="attached"):
            await kit.launcher.copy(tenant, source, target)
        if not kit.keeps_files:
            pytest.skip("this launcher keeps no files")
        await kit.write(runtime, source, "notes.txt", "remember me")
        await kit.launcher.detach(runtime, tenant, source)
        await kit.launcher.copy(tenant, source, target)
        for session in (source, target):
            await kit.launcher.attach(runtime, tenant, session)
        await kit.write(runtime, source, "notes.txt", "changed")
        assert await kit.read(runtime, target, "notes.txt") == "remember me"

    async def test_a_forgotten_session_starts_empty(self, kit: Kit) -> None:
        runtime, tenant, session = new_runtime_id(), new_tenant_id(), new_session_id()
        await kit.launcher.start(runtime)
        await kit.launcher.attach(runtime, tenant, session)
        if not kit.keeps_files:
            pytest.skip("this launcher keeps no files")
        await kit.write(runtime, session, "notes.txt", "forget me")
        await kit.launcher.detach(runtime, tenant, session)
        await kit.launcher.forget(tenant, session)
        await kit.launcher.attach(runtime, tenant, session)
        assert await kit.read(runtime, session, "notes.txt") is None

    async def test_an_installed_collection_is_there_and_can_be_installed_again(self, kit: Kit, tmp_path: Path) -> None:
        (tmp_path / "tools").mkdir()
        (tmp_path / "tools" / "hello.py").write_text("print('hello')\n")
        runtime = new_runtime_id()
        await kit.launcher.start(runtime)
        await kit.launcher.install(runtime, "abc123", str(tmp_path))
        await kit.launcher.install(runtime, "abc123", str(tmp_path))

    async def test_closing_ends_everything(self, kit: Kit) -> None:
        ids = [new_runtime_id() for _ in range(3)]
        await asyncio.gather(*(kit.launcher.start(one) for one in ids))
        await kit.launcher.close()
        assert await kit.launcher.list() == []
        assert [kit.launcher.address(one) for one in ids] == [None] * 3
