"""The composition root: the one place that knows every part, and what each is made of.

Owns nothing but the order in which parts need each other; what is told backwards, from a later part to an earlier one, is a
function here that looks the later one up when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from amplifier_api_server.control_plane.audit.service import Audit
from amplifier_api_server.control_plane.auth.authenticate import Authenticator
from amplifier_api_server.control_plane.catalog.assembly import Kitchen
from amplifier_api_server.control_plane.catalog.garbage import Garbage
from amplifier_api_server.control_plane.catalog.installations import Installations
from amplifier_api_server.control_plane.catalog.profiles import Profiles
from amplifier_api_server.control_plane.catalog.service import Catalogue
from amplifier_api_server.control_plane.catalog.sources import Sources
from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.catalog.wheels import Wheels
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.default_provider import default_provider
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.idempotency.service import Idempotency
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.logins.service import LoginDesk
from amplifier_api_server.control_plane.model_gateway.catalogue import load_catalogue
from amplifier_api_server.control_plane.model_gateway.gateway import ModelGateway
from amplifier_api_server.control_plane.model_gateway.listeners import GatewayListeners
from amplifier_api_server.control_plane.model_gateway.turns import MeteredTurn, RunningTurns
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.launcher import Launcher
from amplifier_api_server.control_plane.pods.reconciler import Reconciler
from amplifier_api_server.control_plane.pods.sockets import socket_dir
from amplifier_api_server.control_plane.provider_keys.service import ProviderKeys
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.control_plane.secrets import vault_of
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.sessions.approvals import Approvals
from amplifier_api_server.control_plane.sessions.callbacks import Callbacks
from amplifier_api_server.control_plane.sessions.copies import Copies
from amplifier_api_server.control_plane.sessions.endings import Endings
from amplifier_api_server.control_plane.sessions.executions import Executions
from amplifier_api_server.control_plane.sessions.exports import Exports
from amplifier_api_server.control_plane.sessions.hot import HotEndpoints
from amplifier_api_server.control_plane.sessions.live import LiveTurns
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.settlement import Settlement
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.sessions.sweeps import Sweeps
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.followers import Followers
from amplifier_api_server.control_plane.web.door import WebDoor
from amplifier_api_server.control_plane.web.pages import Pages
from amplifier_api_server.control_plane.webhooks.sending import Sender
from amplifier_api_server.runtime.protocol import ApprovalEvent, Checkpoint, CheckpointAnswer
from amplifier_api_server.tenants.ids import RuntimeId, TenantId, TurnId

MakeLauncher = Callable[[Settings, Callable[[RuntimeId], str]], Launcher]


def build(settings: Settings, pepper: bytes, make_launcher: MakeLauncher, clock: Clock) -> tuple[Services, Sweeps]:
    database = Database(settings.database_url)
    telemetry, pool, live, streams = (
        Telemetry(),
        Pool(),
        LiveTurns(),
        OpenStreams(settings.server.max_streams_per_tenant),
    )
    backend = MemoryLimits(clock)
    desk = LoginDesk(settings, database, pepper, clock)
    authenticator = Authenticator(database, settings, pepper, clock)
    authenticator.logins = desk.known
    admission = Admission(backend, settings, database, clock)

    async def on_step(metered: MeteredTurn, calls: Sequence[Any]) -> None:
        turn = live.get(metered.tenant_id, metered.session_id, metered.turn_id)
        if turn is not None:
            await settlement.record_step(turn, calls)

    async def on_checkpoint(runtime_id: RuntimeId, body: Checkpoint) -> CheckpointAnswer:
        return await endings.checkpoint(runtime_id, body)

    async def on_approval(runtime_id: RuntimeId, turn_id: TurnId, event: ApprovalEvent) -> None:
        await approvals.told(runtime_id, turn_id, event)

    def on_own_key(tenant_id: TenantId, provider: str) -> None:
        gateway.providers.forget_key(tenant_id, provider)

    running = RunningTurns(backend, drain_seconds=settings.models.drain.total_seconds(), on_step=on_step)
    settlement = Settlement(
        database=database, live=live, metering=running, reservations=admission, clock=clock, telemetry=telemetry
    )
    vault = vault_of(settings)
    own_keys = ProviderKeys(
        settings.models.providers,
        database,
        vault,
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
        approval=on_approval,
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
    catalogue = Catalogue(settings=settings, database=database, fleet=fleet, trees=trees, garbage=garbage, clock=clock)
    sources, wheels = Sources(settings.collections, trees), Wheels(settings.collections, trees)
    installations = Installations(
        settings=settings,
        database=database,
        fleet=fleet,
        kitchen=Kitchen(settings.collections, trees, garbage, sources, wheels),
        bundled=catalogue.bundled,
        clock=clock,
    )
    residency = Residency(
        fleet=fleet, database=database, live=live, places=admission, folder_of=catalogue.folder_of, clock=clock
    )
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
    callbacks = Callbacks(
        settings=settings.callbacks, database=database, vault=vault, sender=_sender(settings, clock), clock=clock
    )
    executions = Executions(turns=turns, endings=endings, sessions=served, admission=admission, callbacks=callbacks)
    approvals = Approvals(live=live, database=database, calls=fleet.calls, clock=clock)
    copies = Copies(
        database=database,
        admission=admission,
        residency=residency,
        catalogue=catalogue,
        garbage=garbage,
        clock=clock,
        telemetry=telemetry,
    )
    followers = Followers(settings=settings, database=database, clock=clock)
    idempotency = Idempotency(settings=settings, database=database, vault=vault, clock=clock)
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
        fleet=fleet,
        database=database,
        clock=clock,
        telemetry=telemetry,
        sweeps=[*sweeps.all(), garbage.sweep, followers.sweep, idempotency.sweep, desk.sweep],
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
        authenticator=authenticator,
        logins=desk,
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
        callbacks=callbacks,
        approvals=approvals,
        copies=copies,
        exports=Exports(database, streams),
        hot=HotEndpoints(executions=executions, endings=endings, sessions=served, callbacks=callbacks, streams=streams),
        audit=Audit(database=database, clock=clock),
        followers=followers,
        idempotency=idempotency,
        pepper=pepper,
    )
    return services, sweeps


def _sender(settings: Settings, clock: Clock) -> Sender:
    """For what goes to servers that tenants name."""
    callbacks = settings.callbacks
    return Sender(
        callbacks.private_hosts,
        lambda: context_of(settings.collections.ca_file),
        clock,
        timeout_seconds=callbacks.timeout.total_seconds(),
    )
