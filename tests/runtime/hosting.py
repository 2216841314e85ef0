"""One session and its turns, without a server around it: the real host, modules and gateway client, a scripted model."""

from __future__ import annotations

import asyncio
import copy
import json
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.host import Host, open_host
from amplifier_api_server.runtime.protocol import Claim
from amplifier_api_server.runtime.turn_port import Services, TurnPort
from amplifier_api_server.runtime.turns import RunningTurn
from tests.runtime.fake_gateway import FakeGateway, Script, Write, says

PLAN: dict[str, Any] = {
    "session": {
        "orchestrator": {"module": "loop-streaming", "config": {}},
        "context": {"module": "context-simple", "config": {}},
    },
    "providers": [{"module": "provider-openai", "config": {"default_model": "big"}}],
    "tools": [{"module": "tool-delegate", "config": {}}, {"module": "tool-todo", "config": {}}],
    "hooks": [],
    "agents": {
        "helper": {"description": "Helps.", "instruction": "You are the helper."},
        "planner": {
            "description": "Plans.",
            "instruction": "You are the planner.",
            "tools": [{"module": "tool-delegate", "config": {}}],
        },
    },
    "system_prompt": "You are the lead.",
    "model": "big",
}

Answer = Callable[[dict[str, Any]], Script]


def plan(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(PLAN), **changes}


def who(body: dict[str, Any]) -> str:
    """The agent that a model call is of, by its prompt: lead, helper, planner."""
    first = body["messages"][0]
    assert first["role"] == "system", first
    return str(text_of_message(first)).partition("You are the ")[2].partition(".")[0]


def text_of_message(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def tool_names(body: dict[str, Any]) -> set[str]:
    return {tool["function"]["name"] for tool in body.get("tools") or []}


def results(body: dict[str, Any]) -> list[str]:
    """What tools answered, in the messages of a model call since the user's last."""
    found: list[str] = []
    for message in body["messages"]:
        if message["role"] == "user":
            found.clear()
        elif message["role"] == "tool":
            found.append(text_of_message(message))
    return found


def brain(**answers: Answer | Script) -> Script:
    """The model: who asks decides what it answers. An answer that takes the body alone gives a script."""

    async def script(body: dict[str, Any], write: Write) -> None:
        answer: Any = answers.get(who(body), says("ok"))
        chosen = answer(body) if answer.__code__.co_argcount == 1 else answer
        await chosen(body, write)

    return script


class Hosted:
    """A session as `Sessions` has it, opened and reopened at will."""

    def __init__(self, gateway: FakeGateway, folder: Path) -> None:
        self.gateway = gateway
        self.folder = folder
        self.modules: dict[str, Path] = {}
        self.claim = Claim(runtime_id="run_1", tenant_id="ten_1")
        self.client = Gateway(str(gateway.path))
        self._host: Host | None = None
        self._turns = 0

    @property
    def host(self) -> Host:
        assert self._host is not None
        return self._host

    async def open(self, plan: dict[str, Any], transcript: Any = (), state: Any = None) -> Host:
        await self.close()
        workspace = self.folder / "sess_1"
        workspace.mkdir(exist_ok=True)
        port = TurnPort(Services(self.claim, self.client, self.folder, self.folder), workspace)
        self._host = await open_host(
            "sess_1", plan, self.modules, port, transcript=list(transcript), state=json.loads(json.dumps(state or {}))
        )
        return self._host

    def start(self, prompt: str = "hi") -> tuple[RunningTurn, asyncio.Task[None]]:
        self._turns += 1
        turn = RunningTurn("sess_1", f"req_{self._turns}", prompt, self.host)
        return turn, asyncio.create_task(turn.run())

    async def ask(self, prompt: str = "hi") -> RunningTurn:
        turn, task = self.start(prompt)
        async with asyncio.timeout(60):
            await task
        return turn

    async def close(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    def module(self, module_id: str, code: str) -> None:
        """A module from outside: `code` is its package."""
        package = self.folder / module_id / f"amplifier_module_{module_id.replace('-', '_')}"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(textwrap.dedent(code))
        self.modules[module_id] = package.parent


@asynccontextmanager
async def hosted(folder: Path) -> AsyncIterator[Hosted]:
    gateway = FakeGateway(folder / "g")
    await gateway.start()
    one = Hosted(gateway, folder)
    try:
        yield one
    finally:
        await one.close()
        await one.client.close()
        await gateway.stop()


def events(turn: RunningTurn) -> list[tuple[str, Any]]:
    """Name and data of each of a turn's events."""
    frames = [
        dict(line.split(": ", 1) for line in frame.split("\n")) for frame in turn.turn.log.text().split("\n\n") if frame
    ]
    return [(frame["event"], json.loads(frame["data"])) for frame in frames]


def tokens(turn: RunningTurn) -> str:
    return "".join(data["content"] for name, data in events(turn) if name == "token")


def tool_events(turn: RunningTurn) -> list[dict[str, Any]]:
    return [data for name, data in events(turn) if name == "tool_call"]
