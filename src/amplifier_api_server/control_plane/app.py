"""The whole server but its socket: its doors around its services, and in which order they start and stop."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from amplifier_api_server.control_plane.clock import Clock, SystemClock
from amplifier_api_server.control_plane.composition import MakeLauncher, build
from amplifier_api_server.control_plane.edge import Edge
from amplifier_api_server.control_plane.framework import framework, with_cors
from amplifier_api_server.control_plane.graphql.doors import graphql_doors
from amplifier_api_server.control_plane.idempotency.edge import KeyedRequests
from amplifier_api_server.control_plane.pods.sockets import remove_socket_dir
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.sessions.stream_rights import StreamRights
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.websocket.calls import Calls
from amplifier_api_server.control_plane.websocket.door import WebsocketDoor
from amplifier_api_server.tenants.repository import runtimes, sessions

log = structlog.get_logger(__name__)

_STOP_SECONDS = 10.0  # for each part of the stop


class Application:
    """The whole server but its socket. `start` before requests come, `drain` and `stop` after the last."""

    def __init__(
        self, settings: Settings, *, pepper: bytes, make_launcher: MakeLauncher, clock: Clock | None = None
    ) -> None:
        self.services = build(settings, pepper, make_launcher, clock or SystemClock())
        graphql = graphql_doors(self.services)
        self.routes = route_table(settings, self.services.hot, graphql.http)
        inner = framework(settings, self.routes)
        inner.state.services = self.services
        keyed = KeyedRequests(idempotency=self.services.idempotency, executions=self.services.hot)
        admission = self.services.admission
        calls = Calls(inner=inner, routes=self.routes, admission=admission, keyed=keyed)
        self.websocket = WebsocketDoor(self.services, calls)
        self.asgi: Any = Edge(
            inner,
            routes=self.routes,
            settings=settings,
            authenticator=self.services.authenticator,
            admission=admission,
            telemetry=self.services.telemetry,
            queue=self.services.fair_queue,
            sockets={"/graphql": graphql.socket, "/ws": self.websocket},
            keyed=keyed,
        )
        if settings.cors.allowed_origins:
            self.asgi = with_cors(self.asgi, settings)
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Mend what an earlier process left, then bring up the gateway and the reconciler. The database is migrated."""
        uses = self.services
        await self._recover()
        await uses.provider_keys.check()
        await uses.gateway.start()
        rights = StreamRights(streams=uses.streams, authenticator=uses.authenticator, clock=uses.clock)
        loops = (uses.authenticator, rights, uses.open_calls, uses.callbacks, uses.followers, uses.logins)
        self._background += [asyncio.create_task(one.run()) for one in loops]
        uses.reconciler.start()

    async def _recover(self) -> None:
        """An embedded server's sandboxes end with it: no runtime of an earlier one is there, and no turn of its runs."""
        uses = self.services
        failed = await uses.endings.recover()
        async with uses.database.write() as db:
            gone = await runtimes.mark_all_gone_of_all_tenants(db, "the server ended", uses.clock.now())
            suspended = await sessions.leave_runtimes_of_all_tenants(db, None)
        unanswered = await uses.idempotency.recover()
        installing = await uses.installations.recover()
        deleted = await uses.garbage.collect()
        log.info(
            "recovered",
            failed_turns=failed,
            unanswered_requests=unanswered,
            failed_installations=installing,
            gone_runtimes=gone,
            suspended_sessions=suspended,
            deleted_trees=deleted,
        )

    async def drain(self, hurry: asyncio.Event | None = None) -> None:
        """Take no new work, and let what runs end, for a while or until somebody hurries."""
        self.services.fleet.is_closing = True
        self.websocket.drain()
        await self.services.turns.drain(self.services.settings.server.drain_timeout.total_seconds(), hurry)
        self.services.followers.close()  # after the last turn's last event

    async def stop(self) -> None:
        """End everything. Every part gets its time, and none keeps the next from its turn."""
        uses = self.services
        self.services.fleet.is_closing = True
        for part in (
            self.websocket.close,
            uses.installations.close,
            uses.reconciler.stop,
            uses.endings.close,
            uses.idempotency.close,
            uses.fleet.close,
            uses.listeners.close_all,
            uses.gateway.close,
            self._end_background,
            uses.authenticator.close,
            uses.logins.close,
            uses.database.close,
            uses.watchdog.close,
        ):
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await part()
            except Exception:
                log.exception("a part did not stop cleanly", part=getattr(part, "__qualname__", ""))
        uses.pool.close()
        remove_socket_dir(uses.settings.server.data_dir)

    async def _end_background(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
