"""A module from outside asks a person: by way of its own process, and as long as that lives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.bundle_trees import Trees
from tests.runtime.fake_gateway import FakeGateway, calls, says
from tests.runtime.outside_modules import odd_image
from tests.runtime.processes import Process, started_runtime

TURN = "/sessions/sess_1/turns/req_a"
ASK = """
async def main():
    system = coordinator.approval_system
    found["said"] = await system.request_approval("may I?", ["Allow", "Deny"], 30, "deny")
"""


@pytest.fixture
def started(short_tmp: Path, gateway: FakeGateway) -> Iterator[Process]:
    with started_runtime(short_tmp, gateway) as process:
        yield process


async def asking(started: Process) -> dict[str, Any]:
    """A session whose tool asks; the approval that waits, and the turn's task in `turn`."""
    await started.driver.claim()
    image = odd_image(Trees(started.driver.installed))
    await started.driver.open(profile=f"{image.name}:{image.name}", images=[image.model_dump()])
    started.driver.gateway.scripts.extend([calls(("odd", {"code": ASK})), says("done")])
    turn = asyncio.create_task(started.driver.stream(request_id="req_a"))
    async with asyncio.timeout(60):
        while True:
            _, found = await started.driver.call("GET", f"{TURN}/approvals")
            if found.get("approvals"):
                return found["approvals"][0] | {"turn": turn}
            await asyncio.sleep(0.02)


async def test_an_approval_is_listed_answered_once_and_shown(started: Process):
    asked = await asking(started)
    path = f"{TURN}/approvals/{asked['approval_id']}"
    status, refused = await started.driver.call("POST", path, {"choice": "maybe"})
    assert (status, refused["code"]) == (422, "invalid_choice")
    status, ended = await started.driver.call("POST", path, {"approved": True})
    assert (status, ended["status"], ended["choice"]) == (200, "answered", "Allow")
    status, refused = await started.driver.call("POST", path, {"approved": False})
    assert (status, refused["code"]) == (409, "approval_closed")
    events = await asked["turn"]
    output = [event.data for event in events if event.name == "tool_call"][-1]["output"]
    assert json.loads(output) == {"said": "Allow"}
    assert [event.data["status"] for event in events if event.name == "approval"] == ["requested", "answered"]
    status, refused = await started.driver.call("POST", f"{TURN}/approvals/apr_0", {"approved": False})
    assert (status, refused["code"]) == (404, "no_approval")
    assert (await started.driver.call("GET", f"{TURN}/approvals"))[1] == {"approvals": []}


async def test_an_approval_whose_process_has_ended_is_closed(started: Process):
    asked = await asking(started)
    (pid,) = started.own()
    os.kill(pid, signal.SIGKILL)
    assert (await asked["turn"])[-1].name == "error"
    status, refused = await started.driver.call("POST", f"{TURN}/approvals/{asked['approval_id']}", {"approved": True})
    assert (status, refused["code"]) in [(404, "no_session"), (409, "approval_closed")]
