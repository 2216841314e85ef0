"""The process: settings in, a listening server, a clean end.

Owns signals and the order of starting and stopping. SIGTERM and SIGINT: no new work, running turns
get `server.drain_timeout`, streams end with a terminal event, sandboxes end, then the process. A second one cuts the wait
short, a third the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import structlog
import uvicorn

from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys, still_good
from amplifier_api_server.control_plane.accounts.bootstrap import read as read_first_keys
from amplifier_api_server.control_plane.announcement import Announcement
from amplifier_api_server.control_plane.app import Application
from amplifier_api_server.control_plane.auth.pepper import pepper_for
from amplifier_api_server.control_plane.client_addresses import TrustedProxies
from amplifier_api_server.control_plane.connections import Bounds, public_protocol
from amplifier_api_server.control_plane.data_folder import held, made
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.migrations import in_words, migrate
from amplifier_api_server.control_plane.peers import Peers
from amplifier_api_server.control_plane.pods.local import LocalLauncher
from amplifier_api_server.control_plane.pods.sandbox_check import check
from amplifier_api_server.control_plane.readiness import told
from amplifier_api_server.control_plane.settings import Settings, SettingsError
from amplifier_api_server.control_plane.telemetry import configure_logging
from amplifier_api_server.control_plane.upgraded import SocketBounds, socket_protocol
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import RuntimeId

log = structlog.get_logger(__name__)

_KEEP_ALIVE_SECONDS = 75  # above common load balancers' 60 s, so that they are the ones who hang up
_READY_SECONDS = 60.0
_CLOSE_SECONDS = 5
_DESCRIPTORS = 524_288  # max_connections, and for each of max_runtimes its gateway's connections (256) and ours
# A thread that computes gives the interpreter up after this long when another wants it; Python's own value is 5 ms. A request
# changes threads some twenty times, and may have to wait for the interpreter each time.
_SWITCH_SECONDS = 0.0005
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
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        data_dir = made(settings.server.data_dir)
        with held(data_dir), asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(settings))
    except (SettingsError, DomainError, OSError) as error:
        log.error(
            "the server can't serve", why=told(error)
        )  # the command says it on standard error, for whoever reads that
        raise


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


async def _serve(settings: Settings) -> int:
    await _demand_a_sandbox(settings)
    with _listening(settings) as listener:
        with in_words(settings.database_url):
            await migrate(settings.database_url)
        pepper = await _pepper(settings)
        app = Application(settings, pepper=pepper, make_launcher=_local_launcher)
        try:
            keys = await _first_keys(app)
            await app.start()
            spare_the_collector()
            app.services.watchdog.start()
            return await _until_stopped(app, listener, Announcement(settings, keys, app.services.gateway.is_demo))
        finally:
            await app.stop()
            log.info("stopped")


async def _pepper(settings: Settings) -> bytes:
    database = Database(settings.database_url)
    try:
        return await pepper_for(database, settings)
    finally:
        await database.close()


async def _first_keys(app: Application) -> FirstKeys | None:
    """Those to tell now: made by this start, or kept and good, for a terminal. Raises SettingsError."""
    uses, data_dir = app.services, app.services.settings.server.data_dir.absolute()
    try:
        made = await ensure_first_keys(uses.database, data_dir, uses.pepper, uses.clock)
    except OSError as error:
        raise SettingsError(f"server.data_dir: the first keys can't be kept in {data_dir}: {error}") from error
    if made is not None or not sys.stderr.isatty():
        return made
    kept = read_first_keys(data_dir)
    return await still_good(uses.database, uses.pepper, kept, uses.clock) if kept is not None else None


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
    for note in report.watched:
        log.warning("the kernel does not hold every bound of sandboxes", note=note)


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


async def _until_stopped(app: Application, listener: socket.socket, says: Announcement) -> int:
    """Serve until a signal, then drain; the exit status."""
    stopping, hurry = asyncio.Event(), asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, _told_to_stop, stopping, hurry)
    server = _Server(_uvicorn_config(app, app.services.settings))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    others = [asyncio.create_task(_announce(app, server, listener, says)), asyncio.create_task(stopping.wait())]
    await asyncio.wait({serving, others[1]}, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    if stopping.is_set():
        log.info("stopping", running_turns=len(app.services.turns.live))
        await app.drain(hurry)
    server.should_exit = True
    await serving
    return 0 if stopping.is_set() else 1


def _told_to_stop(stopping: asyncio.Event, hurry: asyncio.Event) -> None:
    """The first signal drains, the second ends what drains, the third the process: its sandboxes end with it."""
    if hurry.is_set():
        log.error("a third signal ends the process where it stands")
        os._exit(1)
    (hurry if stopping.is_set() else stopping).set()


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
    queue = app.services.fair_queue
    return uvicorn.Config(
        app.asgi,
        host=settings.server.host,
        port=settings.server.port,
        http=public_protocol(Bounds(idle_seconds=_KEEP_ALIVE_SECONDS), _peers(app), queue),
        ws=socket_protocol(_socket_bounds(settings), TrustedProxies(settings.server.trusted_proxies), queue),
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


async def _announce(app: Application, server: uvicorn.Server, listener: socket.socket, says: Announcement) -> None:
    """Once it can serve, say how to use it."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not (server.started and await app.services.catalogue.is_known()):  # noqa: ASYNC110 - uvicorn tells by a flag
                await asyncio.sleep(0.02)
    except TimeoutError:
        log.error("not ready yet; GET /ready says why")
    says.tell(listener.getsockname()[1])
