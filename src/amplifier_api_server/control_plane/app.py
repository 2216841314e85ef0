"""The composition root: the one place that knows every part, and in which order they start and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware

from amplifier_api_server import __version__
from amplifier_api_server.control_plane import documentation, plumbing
from amplifier_api_server.control_plane.accounts import endpoints as accounts
from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.catalog import endpoints as catalog
from amplifier_api_server.control_plane.catalog.assembly import Kitchen
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.installations import Installations
from amplifier_api_server.control_plane.catalog.profiles import Profiles
from amplifier_api_server.control_plane.catalog.service import Catalogue
from amplifier_api_server.control_plane.catalog.sources import Sources
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.catalog.wheels import Wheels
from amplifier_api_server.control_plane.clock import Clock, SystemClock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.default_provider import default_provider
from amplifier_api_server.control_plane.edge import Edge
from amplifier_api_server.control_plane.keys import endpoints as keys
from amplifier_api_server.control_plane.limits import endpoints as limits
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.model_gateway.catalogue import load_catalogue
from amplifier_api_server.control_plane.model_gateway.gateway import ModelGateway
from amplifier_api_server.control_plane.model_gateway.listeners import GatewayListeners
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.models import endpoints as models
from amplifier_api_server.control_plane.openapi import install
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.launcher import Launcher
from amplifier_api_server.control_plane.pods.reconciler import Reconciler
from amplifier_api_server.control_plane.pods.sockets import remove_socket_dir, socket_dir
from amplifier_api_server.control_plane.provider_keys import endpoints as provider_keys
from amplifier_api_server.control_plane.provider_keys.service import ProviderKeys
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.control_plane.routes import RouteTable
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.secrets import vault_of
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.sessions import endpoints as sessions_endpoints
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.executions import Executions
from amplifier_api_server.control_plane.sessions.hot import HotEndpoints
from amplifier_api_server.control_plane.sessions.live import LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.settlement import Settlement
from amplifier_api_server.control_plane.sessions.stream_rights import StreamRights
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.sessions.sweeps import Sweeps
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.usage import endpoints as usage
from amplifier_api_server.control_plane.web import endpoints as web
from amplifier_api_server.control_plane.web.door import WebDoor
from amplifier_api_server.control_plane.web.pages import Pages
from amplifier_api_server.runtime.protocol import Checkpoint, CheckpointAnswer
from amplifier_api_server.tenants.errors import DomainError, Invalid, NotFound
from amplifier_api_server.tenants.ids import RuntimeId, TenantId
from amplifier_api_server.tenants.repository import runtimes, sessions

log = structlog.get_logger(__name__)

_STOP_SECONDS = 10.0  # for each part of the stop
MakeLauncher = Callable[[Settings, Callable[[RuntimeId], str]], Launcher]


class Application:
    """The whole server but its socket. `start` before requests come, `drain` and `stop` after the last."""

    def __init__(
        self, settings: Settings, *, pepper: bytes, make_launcher: MakeLauncher, clock: Clock | None = None
    ) -> None:
        self.services, self._sweeps = _build(settings, pepper, make_launcher, clock or SystemClock())
        self.routes = route_table(settings, self.services.hot)
        framework = _framework(settings, self.routes)
        framework.state.services = self.services
        self.asgi: Any = Edge(
            framework,
            routes=self.routes,
            settings=settings,
            authenticator=self.services.authenticator,
            admission=self.services.admission,
            telemetry=self.services.telemetry,
        )
        if settings.cors.allowed_origins:
            self.asgi = _with_cors(self.asgi, settings)
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Mend what an earlier process left, then bring up the gateway and the reconciler. The database is migrated."""
        uses = self.services
        await self._recover()
        await uses.provider_keys.check()
        await uses.gateway.start()
        rights = StreamRights(streams=uses.streams, database=uses.database, clock=uses.clock)
        self._background += [asyncio.create_task(one.run()) for one in (uses.authenticator, rights)]
        uses.reconciler.start()

    async def _recover(self) -> None:
        """An embedded server's sandboxes end with it: no runtime of an earlier one is there, and no turn of its runs."""
        uses = self.services
        failed = await uses.endings.recover()
        async with uses.database.write() as db:
            gone = await runtimes.mark_all_gone_of_all_tenants(db, "the server ended", uses.clock.now())
            suspended = await sessions.leave_runtimes_of_all_tenants(db, None)
        installing = await uses.installations.recover()
        deleted = await uses.garbage.collect()
        log.info(
            "recovered",
            failed_turns=failed,
            failed_installations=installing,
            gone_runtimes=gone,
            suspended_sessions=suspended,
            deleted_trees=deleted,
        )

    async def drain(self) -> None:
        """Take no new work, and let what runs end, for a while."""
        self.services.fleet.is_closing = True
        await self.services.turns.drain(self.services.settings.server.drain_timeout.total_seconds())

    async def stop(self) -> None:
        """End everything. Every part gets its time, and none keeps the next from its turn."""
        uses = self.services
        self.services.fleet.is_closing = True
        for part in (
            uses.installations.close,
            uses.reconciler.stop,
            uses.endings.close,
            uses.fleet.close,
            uses.listeners.close_all,
            uses.gateway.close,
            self._end_background,
            uses.authenticator.close,
            uses.database.close,
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


def _build(settings: Settings, pepper: bytes, make_launcher: MakeLauncher, clock: Clock) -> tuple[Services, Sweeps]:
    database = Database(settings.database_url)
    telemetry, pool, live, streams = Telemetry(), Pool(), LiveTurns(), OpenStreams()
    backend = MemoryLimits(clock)
    admission = Admission(backend, settings, database, clock)

    async def on_step(metered: MeteredTurn, calls: Sequence[Any]) -> None:
        turn = live.get(metered.tenant_id, metered.session_id, metered.turn_id)
        if turn is not None:
            await settlement.record_step(turn, calls)

    async def on_checkpoint(runtime_id: RuntimeId, body: Checkpoint) -> CheckpointAnswer:
        return await endings.checkpoint(runtime_id, body)

    def on_own_key(tenant_id: TenantId, provider: str) -> None:
        gateway.providers.forget_key(tenant_id, provider)

    running = RunningTurns(backend, drain_seconds=settings.models.drain.total_seconds(), on_step=on_step)
    settlement = Settlement(
        database=database, live=live, metering=running, reservations=admission, clock=clock, telemetry=telemetry
    )
    own_keys = ProviderKeys(
        settings.models.providers,
        database,
        vault_of(settings),
        clock,
        on_change=on_own_key,
    )
    gateway = ModelGateway(
        settings.models,
        running,
        on_checkpoint,
        clock=clock,
        catalogue=load_catalogue(settings.models.catalog),
        keys=own_keys,
        web=WebDoor(Pages(settings, database)),
    )
    listeners = GatewayListeners(socket_dir(settings.server.data_dir) / "g", gateway)
    fleet = Fleet(
        settings=settings,
        database=database,
        launcher=make_launcher(settings, lambda runtime_id: listeners.path(runtime_id) or ""),
        gateways=listeners,
        places=admission,
        pool=pool,
        clock=clock,
        telemetry=telemetry,
    )
    fleet.default_provider = partial(default_provider, settings.models)
    trees = Trees(settings.server.data_dir / "collections")
    garbage = Garbage(trees, database, clock)
    catalogue = Catalogue(settings=settings, database=database, fleet=fleet, trees=trees, garbage=garbage)
    sources, wheels = Sources(settings.collections, trees), Wheels(settings.collections, trees)
    installations = Installations(
        settings=settings,
        database=database,
        fleet=fleet,
        kitchen=Kitchen(settings.collections, trees, garbage, sources, wheels),
        bundled=catalogue.bundled,
        clock=clock,
    )
    residency = Residency(fleet=fleet, database=database, live=live, places=admission, folder_of=catalogue.folder_of)
    endings = Endings(
        settings=settings,
        database=database,
        live=live,
        residency=residency,
        settlement=settlement,
        calls=fleet.calls,
        clock=clock,
    )
    turns = Turns(
        settings=settings,
        database=database,
        live=live,
        residency=residency,
        endings=endings,
        running=running,
        pool=pool,
        clock=clock,
        telemetry=telemetry,
    )
    served = Sessions(
        database=database,
        admission=admission,
        residency=residency,
        live=live,
        endings=endings,
        catalogue=catalogue,
        clock=clock,
        telemetry=telemetry,
    )
    executions = Executions(turns=turns, endings=endings, sessions=served, admission=admission)
    sweeps = Sweeps(
        settings=settings,
        database=database,
        sessions=served,
        residency=residency,
        live=live,
        endings=endings,
        fleet=fleet,
        admission=admission,
        clock=clock,
    )
    reconciler = Reconciler(
        fleet=fleet, database=database, clock=clock, telemetry=telemetry, sweeps=[*sweeps.all(), garbage.sweep]
    )

    async def on_gone(runtime_id: RuntimeId, reason: str) -> None:
        await endings.runtime_gone(runtime_id, reason)
        await residency.runtime_gone(runtime_id, fleet.tenants.get(runtime_id))
        gateway.forget(runtime_id)

    fleet.on_gone = on_gone
    fleet.launcher.on_exit(lambda _: reconciler.wake())
    services = Services(
        settings=settings,
        clock=clock,
        database=database,
        telemetry=telemetry,
        authenticator=Authenticator(database, settings, pepper, clock),
        admission=admission,
        pool=pool,
        gateway=gateway,
        listeners=listeners,
        fleet=fleet,
        reconciler=reconciler,
        turns=turns,
        endings=endings,
        sessions=served,
        catalogue=catalogue,
        installations=installations,
        profiles=Profiles(database=database, catalogue=catalogue, clock=clock),
        garbage=garbage,
        streams=streams,
        provider_keys=own_keys,
        executions=executions,
        hot=HotEndpoints(executions=executions, endings=endings, sessions=served, streams=streams),
        pepper=pepper,
    )
    return services, sweeps


class _Framework(FastAPI):
    """FastAPI without its last resort, which would answer 500 before the edge can say what was wrong."""

    def build_middleware_stack(self) -> Any:
        return ExceptionMiddleware(AsyncExitStackMiddleware(self.router), handlers=self.exception_handlers)


def _framework(settings: Settings, routes: RouteTable) -> FastAPI:
    """FastAPI, for everything that is not hot."""
    app = _Framework(
        title="Amplifier API",
        version=__version__,
        description="The hosted, multi-tenant API for Amplifier agents.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (
        sessions_endpoints,
        catalog,
        keys,
        provider_keys,
        models,
        web,
        usage,
        limits,
        accounts,
        plumbing,
        documentation,
    ):
        app.include_router(router.router)
    if settings.metrics.enabled:
        app.include_router(plumbing.metrics_at(settings.metrics.endpoint))
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _not_served)
    install(app, routes)
    return app


def openapi_document(settings: Settings) -> dict[str, Any]:
    """The OpenAPI document of a server with these settings; nothing is started for it."""
    return _framework(settings, route_table(settings, None)).openapi()


async def _invalid(_request: Any, error: Exception) -> Any:
    """The framework's refusal, as ours: the edge turns it into a problem."""
    assert isinstance(error, RequestValidationError)
    found = [
        {"field": ".".join(str(part) for part in one["loc"] if part != "body") or "body", "message": one["msg"]}
        for one in error.errors()
    ]
    raise Invalid(f"{found[0]['field']}: {found[0]['message']}", errors=found) from None


async def _not_served(_request: Any, error: Exception) -> Any:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, DomainError):  # the edge's own, raised as the framework read the body
        raise error.__cause__ from None
    if error.status_code == 400:  # noqa: PLR2004 - a body that is no JSON, or no UTF-8
        raise Invalid(str(error.detail), code="invalid_json") from None
    raise NotFound("there is nothing at this path", code="no_such_path") from None


def _with_cors(inner: Any, settings: Settings) -> Any:
    exposed = ["X-Request-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"]
    return CORSMiddleware(
        inner,
        allow_origins=list(settings.cors.allowed_origins),
        allow_methods=list(settings.cors.allowed_methods),
        allow_headers=[
            "Authorization",
            "Content-Type",
            "Last-Event-ID",
            *(one.header for one in settings.auth.methods),
        ],
        expose_headers=exposed,
    )
