"""The process: settings in, a listening server, a clean end.

Owns signals, the data folder's lock and the order of starting and stopping. SIGTERM and SIGINT: no new work, running turns
get `server.drain_timeout`, streams end with a terminal event, sandboxes end, then the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import structlog
import uvicorn
from sqlalchemy.exc import DatabaseError

from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.auth.pepper import pepper_of
from amplifier_api_server.control_plane.client_addresses import TrustedProxies
from amplifier_api_server.control_plane.connections import Bounds, public_protocol
from amplifier_api_server.control_plane.migrations import migrate
from amplifier_api_server.control_plane.peers import Peers
from amplifier_api_server.control_plane.pods.local import LocalLauncher
from amplifier_api_server.control_plane.pods.sandbox_check import check
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.control_plane.telemetry import configure_logging
from amplifier_api_server.control_plane.upgraded import SocketBounds, socket_protocol
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_KEEP_ALIVE_SECONDS = 75  # above common load balancers' 60 s, so that they are the ones who hang up
_READY_SECONDS = 60.0
_CLOSE_SECONDS = 5
_DESCRIPTORS = 524_288  # max_connections, and for each of max_runtimes its gateway's connections (256) and ours
_BACKLOG = 2048  # connections that wait to be accepted; the kernel's own bound may be lower


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(settings: Settings) -> int:
    """Serve until a signal; the exit status. Raises SettingsError for what can't be started."""
    configure_logging(settings.logging)
    _take_descriptors()
    data_dir = settings.server.data_dir
    _private_folder(data_dir)
    with _locked(data_dir), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings))


def _take_descriptors() -> None:
    """As many as the system lets us have: the usual soft limit (1,024) is less than a few hostile sandboxes may connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
    await _demand_a_sandbox(settings)
    with _listening(settings) as listener:
        pepper = pepper_of(settings)
        await _migrated(settings)
        app = Application(settings, pepper=pepper, make_launcher=_local_launcher)
        try:
            data_dir = settings.server.data_dir.absolute()
            first = await ensure_first_keys(app.services.database, data_dir, pepper, app.services.clock)
            await app.start()
            spare_the_collector()
            return await _until_stopped(app, listener, first)
        finally:
            await app.stop()
            log.info("stopped")


async def _migrated(settings: Settings) -> None:
    try:
        await migrate(settings.database_url)
    except DatabaseError as error:
        raise SettingsError(f"server.data_dir: its database, amplifier.db, can't be used: {error.orig}") from error


async def _demand_a_sandbox(settings: Settings) -> None:
    report = await check(settings.sandbox)
    if not report.works:
        told = "\n  ".join(report.problems)
        raise SettingsError(
            f"this machine can't sandbox what agents run:\n  {told}\n"
            "To run without a sandbox all the same, on a machine where nothing is of value: --unsafe-no-sandbox"
        )
    for note in report.notes:
        log.info("sandbox", mode=report.mode, note=note)


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The public socket, taken before anything is started."""
    host, port = settings.server.host, settings.server.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"server.host, server.port: can't listen on {host}:{port}: {error.strerror or error}"
        ) from error
    with listener:
        yield listener


async def _until_stopped(app: Application, listener: socket.socket, first: FirstKeys) -> int:
    """Serve until a signal, then drain; the exit status."""
    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    server = _Server(_uvicorn_config(app, app.services.settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    others = [asyncio.create_task(_announce(app, server, listener, first)), asyncio.create_task(stopping.wait())]
    await asyncio.wait({serving, others[1]}, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    if stopping.is_set():
        log.info("stopping", running_turns=len(app.services.turns.live))
        await app.drain()
    server.should_exit = True
    await serving
    return 0 if stopping.is_set() else 1


def spare_the_collector() -> None:
    """Have the garbage collector pass over what is there now and stays, and come less often.

    A request leaves a few cycles, and a full pass walks every object of every library: a third of a busy server's time. At
    most 10,000 objects more wait to be collected, a few megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def _local_launcher(settings: Settings, gateway_path: Callable[[RuntimeId], str]) -> LocalLauncher:
    return LocalLauncher(settings.sandbox, settings.server.data_dir.absolute(), gateway_path)


def _uvicorn_config(app: Application, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        host=settings.server.host,
        port=settings.server.port,
        http=public_protocol(Bounds(idle_seconds=_KEEP_ALIVE_SECONDS), _peers(app)),
        ws=socket_protocol(_socket_bounds(settings), TrustedProxies(settings.server.trusted_proxies)),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=3600,  # `Bounds.idle_seconds` is what holds
        timeout_graceful_shutdown=_CLOSE_SECONDS,
        proxy_headers=False,  # the edge reads them, where the proxy is trusted
    )


def _peers(app: Application) -> Peers:
    given = app.services.settings.server
    return Peers(
        most=given.max_connections,
        most_of_network=given.max_connections_per_address,
        proxies=TrustedProxies(given.trusted_proxies),
        tell=app.services.telemetry.connection_refused,
    )


def _socket_bounds(settings: Settings) -> SocketBounds:
    given = settings.websocket
    return SocketBounds(
        message_bytes=given.max_message,
        message_seconds=settings.api.body_timeout.total_seconds(),
        unread_seconds=given.unread_timeout.total_seconds(),
        ping_seconds=given.ping_interval.total_seconds(),
        pong_seconds=given.ping_timeout.total_seconds(),
    )


async def _announce(app: Application, server: uvicorn.Server, listener: socket.socket, first: FirstKeys) -> None:
    """Once it can serve, say how to use it. On standard output, beside the log: these keys are for the operator's eyes."""
    uses = app.services
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not (server.started and await uses.catalogue.is_known()):  # noqa: ASYNC110 - uvicorn tells by a flag
                await asyncio.sleep(0.02)
    except TimeoutError:
        log.error("not ready yet; GET /ready says why")
    host, port = uses.settings.server.host, listener.getsockname()[1]
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
