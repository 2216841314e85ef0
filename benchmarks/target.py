"""The server under test, in a process of its own: `python -m benchmarks.target OPTIONS_JSON`.

It is what `amplifier-api-server serve` runs (the same application, server, event loop, logging and database), with other
runtimes behind it, with limits that are counted but never reached, and with tenants, sessions and turns that are there
already. When it can serve it writes `ready.json` into its data folder; SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from amplifier_api_server.control_plane import server, settings
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.composition import MakeLauncher
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.pods.memory import MemoryLauncher, Stop
from amplifier_api_server.control_plane.sessions.live import LiveTurn
from amplifier_api_server.control_plane.telemetry import configure_logging
from amplifier_api_server.runtime.protocol import TurnResult, TurnStatus
from amplifier_api_server.tenants.ids import RuntimeId, new_session_id, new_turn_id
from benchmarks import population, stand_in
from benchmarks.population import Citizen
from benchmarks.spans import Spans

_FAR = 10**9  # a limit that is counted and never reached
_PEPPER = b"a pepper for benchmarks alone"


@dataclass(frozen=True, slots=True)
class Options:
    """What the server has."""

    data_dir: str
    upstream_port: int = 0  # where every running turn's runtime is; 0: none, and stand-ins take the sessions
    tenants: int = 1
    sessions: int = 0  # suspended ones, in the database from the start
    turns: int = 1  # running ones, dealt out to the tenants, at the upstream
    warm: int = 2
    sandboxes: bool = False  # real ones, instead of stand-ins
    spans: bool = False  # write where the time went into spans.json at the end
    settings: dict[str, Any] = field(default_factory=dict)  # over those that follow


def _settings(options: Options) -> settings.Settings:
    far = {"requests_per_minute": _FAR, "tokens_per_day": _FAR, "sandboxes": _FAR}
    far |= {"concurrent_sessions": _FAR, "sessions_per_user": _FAR}
    given: dict[str, Any] = {
        "server": {"port": 0, "data_dir": options.data_dir},
        "rate_limiting": {"tiers": {"enterprise": far}},
        "sandbox": {"warm": options.warm, "max_runtimes": 100_000},
    }
    return settings.load(environ={}, **(given | options.settings))


async def _main(options: Options) -> None:
    loaded = _settings(options)
    data_dir = Path(options.data_dir)
    await migrate(loaded.database_url)
    sockets = Path(tempfile.mkdtemp(prefix="bench-"))  # a socket's path has at most 107 bytes
    spans = Spans() if options.spans else None
    app: Application

    async def serve(runtime_id: RuntimeId) -> tuple[Address, Stop]:
        return await stand_in.serve(runtime_id, sockets, app.services)

    launcher: MakeLauncher = server._local_launcher  # noqa: SLF001 - the process's own, not a like of it
    if not options.sandboxes:
        launcher = lambda _settings, _gateway: MemoryLauncher(serve)  # noqa: E731
    app = Application(loaded, pepper=_PEPPER, make_launcher=launcher)
    uses = app.services
    now = uses.clock.now()
    citizens = await population.add_tenants(uses.database, _PEPPER, options.tenants, now)
    await population.add_suspended_sessions(uses.database, citizens, options.sessions, now)
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    try:
        await app.start()
        server.spare_the_collector()
        web = server._Server(server._uvicorn_config(app, loaded))  # noqa: SLF001 - the process's own, not a like of it
        serving = asyncio.create_task(web.serve())
        await _know_the_catalogue(app, options)
        while not web.started:
            await asyncio.sleep(0.02)
        turns = _running_turns(app, citizens, options)
        ready = {
            "port": web.servers[0].sockets[0].getsockname()[1],
            "turns": turns,
            "citizens": [asdict(one) for one in citizens],
        }
        (data_dir / "ready.part").write_text(json.dumps(ready), encoding="utf-8")
        (data_dir / "ready.part").replace(data_dir / "ready.json")
        await stopping.wait()
        web.should_exit = True
        await serving
        if spans is not None:
            spans.write(data_dir / "spans.json")
    finally:
        await app.stop()
        for left in sockets.iterdir():
            left.unlink()
        sockets.rmdir()


async def _know_the_catalogue(app: Application, options: Options) -> None:
    """Wait for a runtime to tell it. Where none is kept warm, one is started for it and ended."""
    uses = app.services
    extra = None
    if not options.warm:
        extra = await uses.fleet.add()
        await uses.fleet.start(extra)
    async with asyncio.timeout(30):
        while not await uses.catalogue.is_known():
            await asyncio.sleep(0.02)
    if extra is not None:
        await uses.fleet.end(extra, "the catalogue is known")


def _running_turns(app: Application, citizens: list[Citizen], options: Options) -> list[tuple[str, str]]:
    """Turns whose events the upstream streams: (path, API key) of each.

    Their end is told already, so that a stream ends with its bytes and waits for no checkpoint.
    """
    found = []
    for number in range(options.turns if options.upstream_port else 0):
        owner = citizens[number % len(citizens)]
        turn = LiveTurn(new_turn_id(), owner.tenant_id, new_session_id(), owner.member_id, owner.key_id)
        turn.address = Address(host="127.0.0.1", port=options.upstream_port)
        turn.ended.set_result(TurnResult(request_id=turn.id, status=TurnStatus.COMPLETED))
        app.services.turns.live.add(turn)
        found.append((f"/v1/sessions/{turn.session_id}/executions/{turn.id}/events", owner.key))
    return found


def main() -> None:
    options = Options(**json.loads(sys.argv[1]))
    os.makedirs(options.data_dir, mode=0o700, exist_ok=True)
    configure_logging(_settings(options).logging)
    logging.captureWarnings(capture=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(options))


if __name__ == "__main__":
    main()
