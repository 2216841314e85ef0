"""The composition root: the one place that knows every part, and what each is made of.

Owns nothing but what each part needs of the others, and so the order in which they are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Sized
from functools import cached_property, partial
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
from amplifier_api_server.control_plane.disk import Disk
from amplifier_api_server.control_plane.egress.certificates import context_of
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.idempotency.service import Idempotency
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.limits.disk_use import DiskUse
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
from amplifier_api_server.control_plane.readiness import Readiness
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
from amplifier_api_server.control_plane.sessions.open_calls import OpenCalls
from amplifier_api_server.control_plane.sessions.residency import Residency
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.settlement import Settlement
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.sessions.sweeps import Sweeps
from amplifier_api_server.control_plane.sessions.turns import Turns
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.control_plane.tenant_events.followers import Followers
from amplifier_api_server.control_plane.watchdog import Watchdog
from amplifier_api_server.control_plane.web.door import WebDoor
from amplifier_api_server.control_plane.web.pages import Pages
from amplifier_api_server.control_plane.webhooks.sending import Sender
from amplifier_api_server.runtime.protocol import ApprovalEvent, Checkpoint, CheckpointAnswer
from amplifier_api_server.tenants.ids import RuntimeId, TenantId, TurnId

MakeLauncher = Callable[[Settings, Callable[[RuntimeId], str]], Launcher]


def build(settings: Settings, pepper: bytes, make_launcher: MakeLauncher, clock: Clock) -> Services:
    """Every part, made and wired; nothing is started. Raises SettingsError."""
    parts = _Parts(settings, pepper, make_launcher, clock)
    parts.fleet.on_gone = parts.on_gone
    parts.fleet.launcher.on_exit(lambda _: parts.reconciler.wake())
    parts.fleet.launcher.on_growth(parts.disk_use.is_over)
    return parts.services


class _Parts:
    """One of each part, made when another one first asks for it.

    What is told backwards (a step to the settlement, a runtime's end to its sessions) is a method: by then all are made.
    """

    def __init__(self, settings: Settings, pepper: bytes, make_launcher: MakeLauncher, clock: Clock) -> None:
        self.settings = settings
        self.pepper = pepper
        self.make_launcher = make_launcher
        self.clock = clock
        self.telemetry = Telemetry()
        self.watchdog = Watchdog(self.telemetry.loop_delays, self.telemetry.loop_stalls)
        self.fair_queue = FairQueue()
        self.readiness = Readiness(self.telemetry, clock)
        self.disk = Disk(settings.server.data_dir, settings.sandbox)
        self.database = Database(settings.database_url, self.disk.reserve)
        self.database.on_trouble, self.database.on_works = self.readiness.failing, self.readiness.works
        self.pool = Pool()
        self.live = LiveTurns()
        self.streams = OpenStreams(settings.server.max_streams_per_tenant)
        self.backend = MemoryLimits(clock)
        self.admission = Admission(self.backend, settings, self.database, clock, self.disk)
        self.vault = vault_of(settings)
        self.trees = Trees(settings.server.data_dir / "collections")
        self.garbage = Garbage(self.trees, self.database, clock)
        self.followers = Followers(settings=settings, database=self.database, clock=clock)
        self.idempotency = Idempotency(settings=settings, database=self.database, vault=self.vault, clock=clock)

    # Who calls.

    @cached_property
    def desk(self) -> LoginDesk:
        return LoginDesk(self.settings, self.database, self.pepper, self.clock)

    @cached_property
    def authenticator(self) -> Authenticator:
        made = Authenticator(self.database, self.settings, self.pepper, self.clock)
        made.logins = self.desk.known
        return made

    # What sandboxes may ask for.

    @cached_property
    def running(self) -> RunningTurns:
        drain_seconds = self.settings.models.drain.total_seconds()
        return RunningTurns(self.backend, drain_seconds=drain_seconds, on_step=self.on_step)

    @cached_property
    def open_calls(self) -> OpenCalls:
        return OpenCalls(self.running, self.database)

    @cached_property
    def own_keys(self) -> ProviderKeys:
        providers = self.settings.models.providers
        return ProviderKeys(providers, self.database, self.vault, self.clock, on_change=self.on_own_key)

    @cached_property
    def gateway(self) -> ModelGateway:
        return ModelGateway(
            self.settings.models,
            self.running,
            self.on_checkpoint,
            clock=self.clock,
            catalogue=load_catalogue(self.settings.models.catalog),
            keys=self.own_keys,
            web=WebDoor(Pages(self.settings, self.database)),
            approval=self.on_approval,
            attempted=self.telemetry.model_attempted,
            queue=self.fair_queue,
        )

    @cached_property
    def listeners(self) -> GatewayListeners:
        return GatewayListeners(socket_dir(self.settings.server.data_dir) / "g", self.gateway)

    # Sandboxes, and what is in them.

    @cached_property
    def fleet(self) -> Fleet:
        made = Fleet(
            settings=self.settings,
            database=self.database,
            launcher=self.make_launcher(self.settings, lambda runtime_id: self.listeners.path(runtime_id) or ""),
            gateways=self.listeners,
            places=self.admission,
            pool=self.pool,
            clock=self.clock,
            telemetry=self.telemetry,
            readiness=self.readiness,
        )
        made.default_provider = partial(default_provider, self.settings.models)
        return made

    @cached_property
    def disk_use(self) -> DiskUse:
        made = DiskUse(self.database, self.trees, running=self.fleet.owners, sandboxes=self.fleet.launcher)
        self.admission.disk_use = made
        return made

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(
            settings=self.settings,
            database=self.database,
            fleet=self.fleet,
            trees=self.trees,
            garbage=self.garbage,
            clock=self.clock,
        )

    @cached_property
    def installations(self) -> Installations:
        wanted, trees = self.settings.collections, self.trees
        return Installations(
            settings=self.settings,
            database=self.database,
            fleet=self.fleet,
            kitchen=Kitchen(wanted, trees, self.garbage, Sources(wanted, trees), Wheels(wanted, trees)),
            bundled=self.catalogue.bundled,
            disk=self.disk,
            disk_use=self.disk_use,
            clock=self.clock,
        )

    @cached_property
    def residency(self) -> Residency:
        return Residency(
            fleet=self.fleet,
            database=self.database,
            live=self.live,
            places=self.admission,
            folder_of=self.catalogue.folder_of,
            clock=self.clock,
        )

    # Sessions and turns.

    @cached_property
    def settlement(self) -> Settlement:
        return Settlement(
            database=self.database,
            live=self.live,
            metering=self.running,
            reservations=self.admission,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    @cached_property
    def endings(self) -> Endings:
        return Endings(
            settings=self.settings,
            database=self.database,
            live=self.live,
            residency=self.residency,
            settlement=self.settlement,
            calls=self.fleet.calls,
            clock=self.clock,
        )

    @cached_property
    def turns(self) -> Turns:
        return Turns(
            settings=self.settings,
            database=self.database,
            live=self.live,
            residency=self.residency,
            endings=self.endings,
            running=self.running,
            pool=self.pool,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    @cached_property
    def sessions(self) -> Sessions:
        return Sessions(
            database=self.database,
            admission=self.admission,
            residency=self.residency,
            live=self.live,
            endings=self.endings,
            catalogue=self.catalogue,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    @cached_property
    def callbacks(self) -> Callbacks:
        return Callbacks(
            settings=self.settings.callbacks,
            database=self.database,
            vault=self.vault,
            sender=_sender(self.settings, self.clock),
            clock=self.clock,
        )

    @cached_property
    def executions(self) -> Executions:
        return Executions(
            turns=self.turns,
            endings=self.endings,
            sessions=self.sessions,
            admission=self.admission,
            callbacks=self.callbacks,
        )

    @cached_property
    def approvals(self) -> Approvals:
        return Approvals(live=self.live, database=self.database, calls=self.fleet.calls, clock=self.clock)

    @cached_property
    def copies(self) -> Copies:
        return Copies(
            database=self.database,
            admission=self.admission,
            residency=self.residency,
            catalogue=self.catalogue,
            garbage=self.garbage,
            disk_use=self.disk_use,
            clock=self.clock,
            telemetry=self.telemetry,
        )

    @cached_property
    def hot(self) -> HotEndpoints:
        return HotEndpoints(
            executions=self.executions,
            endings=self.endings,
            sessions=self.sessions,
            callbacks=self.callbacks,
            streams=self.streams,
        )

    # What goes on by itself.

    @cached_property
    def reconciler(self) -> Reconciler:
        sweeps = Sweeps(
            settings=self.settings,
            database=self.database,
            sessions=self.sessions,
            residency=self.residency,
            live=self.live,
            endings=self.endings,
            fleet=self.fleet,
            admission=self.admission,
            clock=self.clock,
        ).all()
        others = (
            self.disk.sweep,
            self.disk_use.sweep,
            self.garbage.sweep,
            self.followers.sweep,
            self.idempotency.sweep,
            self.desk.sweep,
        )
        return Reconciler(
            fleet=self.fleet,
            database=self.database,
            clock=self.clock,
            telemetry=self.telemetry,
            readiness=self.readiness,
            sweeps=[*sweeps, *others, self.measure],
        )

    async def measure(self) -> None:
        """Figures that nobody counts as they change."""
        self.telemetry.database_bytes.set(await asyncio.to_thread(self.database.size_bytes))
        queues: dict[str, Sized] = {
            "installations": self.installations,
            "callbacks": self.callbacks,
            "settlements": self.settlement,
        }
        for name, queue in queues.items():
            self.telemetry.waiting.labels(name).set(len(queue))

    # What is told backwards.

    async def on_step(self, metered: MeteredTurn, calls: Sequence[Any]) -> None:
        """A turn's model calls so far, to be written down."""
        turn = self.live.get(metered.tenant_id, metered.session_id, metered.turn_id)
        if turn is not None:
            await self.settlement.record_step(turn, calls)

    async def on_checkpoint(self, runtime_id: RuntimeId, body: Checkpoint) -> CheckpointAnswer:
        """A turn's end, as its runtime says it."""
        return await self.endings.checkpoint(runtime_id, body)

    async def on_approval(self, runtime_id: RuntimeId, turn_id: TurnId, event: ApprovalEvent) -> None:
        """A turn asks for a person's word."""
        await self.approvals.told(runtime_id, turn_id, event)

    def on_own_key(self, tenant_id: TenantId, provider: str) -> None:
        """A tenant's own key for a provider is another one, or none."""
        self.gateway.providers.forget_key(tenant_id, provider)

    async def on_gone(self, runtime_id: RuntimeId, reason: str) -> None:
        """A runtime has ended."""
        await self.endings.runtime_gone(runtime_id, reason)
        await self.residency.runtime_gone(runtime_id, self.fleet.tenants.get(runtime_id))
        self.gateway.forget(runtime_id)

    @property
    def services(self) -> Services:
        """What requests ask for."""
        return Services(
            settings=self.settings,
            clock=self.clock,
            database=self.database,
            disk=self.disk,
            telemetry=self.telemetry,
            watchdog=self.watchdog,
            fair_queue=self.fair_queue,
            readiness=self.readiness,
            authenticator=self.authenticator,
            logins=self.desk,
            admission=self.admission,
            pool=self.pool,
            gateway=self.gateway,
            listeners=self.listeners,
            fleet=self.fleet,
            reconciler=self.reconciler,
            turns=self.turns,
            endings=self.endings,
            sessions=self.sessions,
            catalogue=self.catalogue,
            installations=self.installations,
            profiles=Profiles(database=self.database, catalogue=self.catalogue, clock=self.clock),
            garbage=self.garbage,
            streams=self.streams,
            provider_keys=self.own_keys,
            executions=self.executions,
            open_calls=self.open_calls,
            callbacks=self.callbacks,
            approvals=self.approvals,
            copies=self.copies,
            exports=Exports(self.database, self.streams),
            hot=self.hot,
            audit=Audit(database=self.database, clock=self.clock),
            followers=self.followers,
            idempotency=self.idempotency,
            pepper=self.pepper,
        )


def _sender(settings: Settings, clock: Clock) -> Sender:
    """For what goes to servers that tenants name."""
    callbacks = settings.callbacks
    return Sender(
        callbacks.private_hosts,
        lambda: context_of(settings.collections.ca_file),
        clock,
        timeout_seconds=callbacks.timeout.total_seconds(),
    )
