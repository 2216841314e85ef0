"""From the environment to a running server and back: descriptors, logging, signals, the end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from amplifier_api_server.runtime import call_groups
from amplifier_api_server.runtime.app import App
from amplifier_api_server.runtime.gateway import Gateway
from amplifier_api_server.runtime.http_server import HttpServer
from amplifier_api_server.runtime.modules import import_all
from amplifier_api_server.runtime.own_process.inside import main_pid
from amplifier_api_server.runtime.protocol import Environment

log = logging.getLogger(__name__)

_WARM_UP_AFTER_SECONDS = 0.02  # when the launcher has had its first answer
STOP_SECONDS = 1.8  # the launcher kills after two
OWN_STOP_SECONDS = 1.3  # and the main process ends a session's own after a second and a half


def serve(environment: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    if main_pid(environment) is None:  # what a session's own process says last is told to its tenant
        logging.getLogger("amplifier_api_server").setLevel(logging.INFO)
    _keep_stdout_free()
    try:
        call_groups.prepare(environment, is_main=main_pid(environment) is None)
        listener = _listener(environment)
        gateway = Gateway.from_environment(environment)
        workspace = Path(environment[Environment.WORKSPACE])
        installed = Path(environment.get(Environment.COLLECTIONS) or workspace / ".collections")
    except (KeyError, ValueError, OSError) as error:
        log.error("the runtime can't start: %s %s", type(error).__name__, error)
        return 2
    if not gateway.is_there():
        # It was killed between starting us and our sandbox's being bound to its life: nobody else would ever end us.
        log.error("the control plane has ended")
        return 3
    main = main_pid(environment)
    asyncio.run(_serve(App(gateway, workspace, installed, is_own=main is not None), listener, main))
    return 0


async def _serve(app: App, listener: socket.socket, main: int | None) -> None:
    """`main` is the main process's number, in a session's own process."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = HttpServer(app.handle, only_pid=main)
    await server.listen(listener)
    if main is None:
        loop.call_later(_WARM_UP_AFTER_SECONDS, import_all)
    await stop.wait()
    log.info("stopping")
    try:
        async with asyncio.timeout(STOP_SECONDS if main is None else OWN_STOP_SECONDS):
            await app.stop()
            await server.close(grace_seconds=0.2)
    except TimeoutError:
        log.warning("something did not end in time")
    logging.shutdown()
    os._exit(0)  # asyncio would wait for the threads of blocking tools, for as long as they like


def _listener(environment: Mapping[str, str]) -> socket.socket:
    descriptor = int(environment[Environment.LISTEN_FD])
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def _keep_stdout_free() -> None:
    """Modules that print must not find a pipe that nobody reads, and must not mix into anything."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
