"""Leads that delegate, and turns that run while a test spawns children by itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from amplifier_api_server.runtime.host import Host
from tests.runtime.fake_gateway import Script, calls, says
from tests.runtime.hosting import Hosted, events, results, who


def delegates(*tasks: dict[str, Any], then: str = "done") -> Any:
    """Delegate `tasks` side by side, then say `then`."""

    def answer(body: dict[str, Any]) -> Script:
        return says(then) if results(body) else calls(*(("delegate", task) for task in tasks))

    return answer


HELP = {"agent": "helper", "instruction": "Count the files.", "context_depth": "none"}


def outcome(turn: Any) -> dict[str, Any]:
    """The parsed output of a turn's first delegate call."""
    (call, *_) = [one for one in turn.turn.tool_calls if one.tool == "delegate"]
    output = call.output if call.output is not None else {"error": call.error}
    return dict(json.loads(output) if isinstance(output, str) else output)


async def spawn(host: Host, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = await host.capability("session.spawn")(
        **{"agent_name": "helper", "instruction": "Go.", **more}
    )
    return made


class running:  # noqa: N801 - reads as a statement
    """A turn that runs as long as the block: its lead waits in its model call."""

    def __init__(self, session: Hosted) -> None:
        self._session = session
        self._end = asyncio.Event()

    async def __aenter__(self) -> None:
        other = self._session.gateway.default
        begun = asyncio.Event()

        async def script(body: dict[str, Any], write: Any) -> None:
            if who(body) != "lead":
                await other(body, write)
                return
            self._session.gateway.requests.remove(body)
            begun.set()
            await self._end.wait()
            await says("done")(body, write)

        self._session.gateway.default = script
        self._turn, self._task = self._session.start()
        await asyncio.wait_for(begun.wait(), 60)

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        await asyncio.wait_for(self._task, 60)
        assert events(self._turn)[-1][0] == "complete", events(self._turn)
