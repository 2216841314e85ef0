"""The process: settings in, a listening server, a clean end.

Owns signals, the data folder's lock and the order of starting and stopping. SIGTERM and SIGINT: no new work, running turns
get `server.drain_timeout`, streams end with a terminal event, sandboxes end, then the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import structlog
import uvicorn

from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.auth.pepper import pepper_of
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.control_plane.pods.local import LocalLauncher
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.control_plane.telemetry import configure_logging
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_KEEP_ALIVE_SECONDS = 75  # above common load balancers' 60 s, so that they are the ones who hang up
_READY_SECONDS = 60.0
_CLOSE_SECONDS = 5


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(settings: Settings) -> int:
    """Serve until a signal; the exit status. Raises SettingsError for what can't be started."""
    configure_logging(settings.logging)
    data_dir = settings.server.data_dir
    _private_folder(data_dir)
    with _locked(data_dir), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


def _private_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        data_dir.chmod(0o700)
    except OSError as error:
        raise SettingsError(f"server.data_dir: {data_dir} can't be used: {error}") from error


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[IO[str]]:
    """One server for one data folder: two would end each other's sandboxes."""
    with (data_dir / "lock").open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(f"server.data_dir: another server is using {data_dir}") from error
        yield lock


async def _serve(settings: Settings) -> int:
    data_dir = settings.server.data_dir.absolute()
    pepper = pepper_of(settings)
    await migrate(settings.database_url)
    app = Application(settings, pepper=pepper, make_launcher=_local_launcher)
    uses = app.services
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    try:
        first = await ensure_first_keys(uses.database, data_dir, pepper, uses.clock)
        await app.start()
        server = _Server(_uvicorn_config(app, settings))
        serving = asyncio.create_task(server.serve())
        announcing = asyncio.create_task(_announce(app, server, first))
        await asyncio.wait({serving, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
        announcing.cancel()
        if stopping.is_set():
            log.info("stopping", running_turns=len(uses.turns.live))
            await app.drain()
        server.should_exit = True
        await serving
        return 0 if stopping.is_set() else 1
    finally:
        await app.stop()
        log.info("stopped")


def _local_launcher(settings: Settings, gateway_path: Callable[[RuntimeId], str]) -> LocalLauncher:
    return LocalLauncher(settings.sandbox, settings.server.data_dir.absolute(), gateway_path)


def _uvicorn_config(app: Application, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        host=settings.server.host,
        port=settings.server.port,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.server.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        proxy_headers=bool(settings.server.trusted_proxies),
        forwarded_allow_ips=list(settings.server.trusted_proxies) or None,
    )


async def _announce(app: Application, server: uvicorn.Server, first: FirstKeys) -> None:
    """Once it can serve, say how to use it. On standard output, beside the log: these keys are for the operator's eyes."""
    uses = app.services
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not (server.started and await uses.catalogue.is_known()):
                await asyncio.sleep(0.02)
    except TimeoutError:
        log.error("not ready yet; GET /ready says why")
    port = uses.settings.server.port
    if server.started and server.servers:
        port = server.servers[0].sockets[0].getsockname()[1]
    host = uses.settings.server.host
    address = f"http://{'127.0.0.1' if host in {'0.0.0.0', '::', ''} else host}:{port}"  # noqa: S104 - compared, not bound
    lines = [
        "",
        f"Amplifier API server at {address} (documentation: {address}/docs)",
        f"API key: {first.tenant_key}",
        f"Operator key: {first.operator_key}",
    ]
    if uses.gateway.is_demo:
        lines.append(
            "Models: the built-in demo, which is no model; set OPENAI_API_KEY or OPENAI_BASE_URL for a real one"
        )
    if uses.settings.sandbox.mode == "none":
        lines.append("WARNING: --unsafe-no-sandbox: what runs in sessions can read and change everything that you can")
    lines += [
        "Try:",
        f"  curl -s {address}/v1/tools/bash/execute -H 'X-API-Key: {first.tenant_key}' \\",
        """    -H 'Content-Type: application/json' -d '{"input": {"command": "echo hello from a sandbox"}}'""",
        "",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
