from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from amplifier_api_server.control_plane.clock import SystemClock
from amplifier_api_server.control_plane.connections import Bounds
from amplifier_api_server.control_plane.limits.backend import Budget
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.model_gateway.gateway import ModelGateway
from amplifier_api_server.control_plane.model_gateway.listeners import GatewayListeners
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.settings import ModelProvider, Models
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.runtime.protocol import CheckpointAnswer, EventName, TurnResult, TurnStatus
from tests.real_model import real_model as real_model  # noqa: PLC0414 - a fixture

from .scripted_upstream import ScriptedUpstream
from .spoken import ALL, Told

KEY = "sk-the-operators-own-key"
CHAT = "/v1/chat/completions"


@dataclass
class House:
    """A gateway with its sockets, and the runtimes behind them."""

    turns: RunningTurns
    gateway: ModelGateway
    listeners: GatewayListeners
    limits: MemoryLimits
    checkpoints: list = field(default_factory=list)
    steps: list = field(default_factory=list)
    telemetry: Telemetry = field(default_factory=Telemetry)
    stack: contextlib.AsyncExitStack = None

    async def runtime(self, runtime_id: str = "run_1") -> httpx2.AsyncClient:
        """A client on this runtime's own socket."""
        path = await self.listeners.open(runtime_id)
        transport = httpx2.AsyncHTTPTransport(uds=path)
        client = httpx2.AsyncClient(transport=transport, base_url="http://gateway", timeout=60)
        return await self.stack.enter_async_context(client)

    async def turn(
        self,
        turn_id: str = "req_1",
        runtime_id: str = "run_1",
        limit: int | None = None,
        reserve: int = 100,
        tenant_id: str = "ten_1",
    ):
        """A turn that runs; with `limit`, of a tenant that has so many tokens a day."""
        budget, reserved = None, 0
        if limit is not None:
            budget = Budget(f"tokens:{tenant_id}", "tokens_per_day", limit, turn_id, reserve, 1, 60)
            reserved = (await self.limits.take([budget])).amounts[turn_id]
        turn = MeteredTurn(tenant_id, "mem_1", "sess_1", turn_id, runtime_id, budget, reserved)
        self.turns.begin(turn)
        return turn


@pytest.fixture
async def upstream():
    async with ScriptedUpstream() as scripted:
        yield scripted


@pytest.fixture
async def build(tmp_path: Path, upstream):
    """Builds houses on the scripted provider: `await build(idle_timeout=..., provider={...})`."""
    async with contextlib.AsyncExitStack() as stack:

        async def build_one(
            *, provider: dict | None = None, bounds: Bounds | None = None, on_step=None, **models
        ) -> House:
            if provider is not False:
                given = {"name": "up", "base_url": upstream.base_url, "api_key": SecretStr(KEY), "models": ("m", "n")}
                models["providers"] = (ModelProvider(**(given | (provider or {}))),)
            models = {"drain": timedelta(seconds=0.3), "idle_timeout": timedelta(seconds=5), "retries": 0} | models
            settings = Models(**models)
            limits = MemoryLimits(SystemClock())
            house = House(None, None, None, limits, stack=stack)

            async def step(turn, usages):
                house.steps.append(list(usages))
                if on_step is not None:
                    await on_step(turn, usages)

            async def checkpoint(runtime_id, body):
                house.checkpoints.append((runtime_id, body))
                result = TurnResult(request_id=body.request_id, status=TurnStatus(body.status))
                return CheckpointAnswer(event=EventName.COMPLETE, data={"request_id": body.request_id}, result=result)

            house.turns = RunningTurns(limits, drain_seconds=settings.drain.total_seconds(), on_step=step)
            house.gateway = await stack.enter_async_context(
                ModelGateway(settings, house.turns, checkpoint, attempted=house.telemetry.model_attempted)
            )
            house.listeners = GatewayListeners(tmp_path / "sockets", house.gateway, bounds=bounds)
            stack.push_async_callback(house.listeners.close_all)
            return house

        yield build_one


@pytest.fixture
async def house(build) -> House:
    return await build()


def ask(text: str = "hello", **more) -> dict:
    return {"model": "default", "messages": [{"role": "user", "content": text}], **more}


def naming(turn_id: str = "req_1") -> dict:
    return {"X-Amplifier-Turn": turn_id}


@dataclass
class Streamed:
    status: int
    body: bytes
    headers: httpx2.Headers

    @property
    def events(self) -> list:
        data = [one.removeprefix("data: ") for one in self.body.decode().split("\n\n") if one.startswith("data: ")]
        return [one if one == "[DONE]" else json.loads(one) for one in data]

    @property
    def text(self) -> str:
        choices = [choice for one in self.events if one != "[DONE]" for choice in one.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def error_code(self) -> str | None:
        last = self.events[-1]
        return last["error"]["code"] if last != "[DONE]" and "error" in last else None


async def streamed(client: httpx2.AsyncClient, body: dict | None = None, turn_id: str = "req_1") -> Streamed:
    """Ask for a stream and read it to its end."""
    body = (body or ask()) | {"stream": True}
    async with client.stream("POST", CHAT, json=body, headers=naming(turn_id)) as answer:
        return Streamed(answer.status_code, b"".join([part async for part in answer.aiter_raw()]), answer.headers)


@pytest.fixture(params=ALL, ids=[one.name for one in ALL])
def spoken(request):
    """Each dialect."""
    return request.param


@pytest.fixture
async def spoken_house(build, spoken):
    """Builds houses whose provider speaks the dialect: `await spoken_house(retries=2, provider={...})`."""

    async def build_one(*, provider: dict | None = None, **more) -> House:
        return await build(provider={"dialect": spoken.dialect} | (provider or {}), **more)

    return build_one


async def told(client: httpx2.AsyncClient, path: str, body: dict, turn_id: str = "req_1") -> Told:
    """Ask, and read whatever comes, however it ends."""
    async with client.stream("POST", path, json=body, headers=naming(turn_id)) as answer:
        got = Told(answer.status_code, b"", answer.headers)
        try:
            async for part in answer.aiter_raw():
                got.body += part
        except httpx2.RemoteProtocolError:
            got.is_broken_off = True
    return got
