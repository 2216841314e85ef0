"""Installations: jobs of this process, each with a row that says how far it is and how it ended.

Owns their lines and bounds, their rows, and the end of each: a collection's row, or a failure and nothing left. Refuses to
know how an image is made (`assembly`). Invariants: the row is written first; a tenant's jobs go one after the other, and at
most `collections.max_installations` at once over all; what ended is never changed; what is told of a failure is told in the
row of its own tenant alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from time import monotonic
from weakref import WeakValueDictionary

import structlog

from amplifier_api_server.control_plane.audit.recording import differences, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.catalog.assembly import UPLOAD, Assembly, Kitchen, Order
from amplifier_api_server.control_plane.catalog.image_hash import image_hash
from amplifier_api_server.control_plane.catalog.source_limits import Footprint
from amplifier_api_server.control_plane.catalog.workshop import workshop
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.disk import Disk, disk_full, is_no_room
from amplifier_api_server.control_plane.limits.disk_use import DiskUse
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Conflict, DomainError, Invalid, NotFound, Unavailable
from amplifier_api_server.tenants.ids import InstallationId, TenantId, new_collection_id, new_installation_id
from amplifier_api_server.tenants.images import trees_of
from amplifier_api_server.tenants.lifecycle import InstallationStatus
from amplifier_api_server.tenants.models import Collection, Installation
from amplifier_api_server.tenants.repository import collections, installations
from amplifier_api_server.tenants.repository.pages import Page

log = structlog.get_logger(__name__)

_MAX_COLLECTIONS = 100  # of one tenant
_MAX_UNFINISHED_EACH = 4  # of one tenant: one is worked on, the others wait, each perhaps with an archive on disk
_MAX_UNFINISHED = 64  # of all tenants
_REPORT_SECONDS = 1.0  # between two writes of one job's progress
_END_SECONDS = 20.0  # for a cancelled job to clean up
_NOT_A_NAME = "installations"  # its address is the jobs' own


@dataclass(slots=True, eq=False)
class Job:
    """One installation that goes on here. `ended` is set when its row says how; then exactly one of the other two is."""

    id: InstallationId
    tenant_id: TenantId
    member_id: str
    order: Order
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    collection: Collection | None = None
    warnings: Sequence[str] = ()
    error: DomainError | None = None
    task: asyncio.Task[None] | None = None
    is_ending: bool = False  # its end is being written: too late to cancel
    reported_at: float = 0.0
    phase: str = ""
    why_cancelled: str = "it was cancelled"


class Installations:
    """All tenants' jobs, each seen by its own."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        fleet: Fleet,
        kitchen: Kitchen,
        bundled: Callable[[], Awaitable[protocol.Catalog]],
        disk: Disk,
        disk_use: DiskUse,
        clock: Clock,
    ) -> None:
        self._disk = disk
        self._disk_use = disk_use
        self._limits = settings.collections
        self._database = database
        self._fleet = fleet
        self._kitchen = kitchen
        self._bundled = bundled
        self._clock = clock
        self._uploads = settings.server.data_dir / "uploads"
        self._jobs: dict[InstallationId, Job] = {}
        self._places = asyncio.Semaphore(settings.collections.max_installations)
        self._lines: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()
        self._reports: set[asyncio.Task[None]] = set()

    # Beginning.

    async def begin(self, principal: Principal, order: Order, archive: bytes | None = None) -> Job:
        """Start a job for `order`; with `archive`, of that. Commits its row.

        Raises Conflict (`installation_running`) for one more than a tenant may have waiting, Unavailable.
        """
        mine = [job.id for job in self._jobs.values() if job.tenant_id == principal.tenant_id]
        if len(mine) >= _MAX_UNFINISHED_EACH:
            raise Conflict(
                f"{len(mine)} installations of yours have not ended yet; wait for one, or cancel it",
                code="installation_running",
                retry_after_seconds=5,
                installations=mine,
            )
        if len(self._jobs) >= _MAX_UNFINISHED or self._fleet.is_closing:
            raise Unavailable("too many installations are waiting; try again", retry_after_seconds=30)
        job = Job(new_installation_id(), principal.tenant_id, principal.member_id, order)
        self._jobs[job.id] = job  # counted before anything is awaited
        try:
            if archive is not None:
                self._disk_use.require_now(job.tenant_id, Size(len(archive), 1))
                self._disk_use.expect(job.tenant_id, job.id, Size(len(archive), 1))
                job.order = replace(order, archive=await asyncio.to_thread(self._write_upload, job.id, archive))
            async with self._database.write() as db:
                await installations.add(db, job.tenant_id, _row(job, self._clock.now()))
                changes = differences({}, {"source": order.source, "name": order.name})
                await record(db, self._clock, principal, "installCollection", target=job.id, changes=changes)
        except BaseException:
            del self._jobs[job.id]
            await asyncio.to_thread(self._remove_upload, job)
            self._disk_use.settle(job.tenant_id, job.id)
            raise
        job.task = asyncio.create_task(self._run(job), name=f"installation {job.id}")
        return job

    def __len__(self) -> int:
        """Those that have not ended."""
        return len(self._jobs)

    async def wait(self, job: Job) -> Collection | None:
        """The collection, or the error that the job ended in, if it ends within `collections.wait`; else None."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.wait.total_seconds()):
                await job.ended.wait()
        if job.error is not None:
            raise job.error
        return job.collection

    def _write_upload(self, installation_id: InstallationId, archive: bytes) -> Path:
        self._uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._uploads / f"{installation_id}.zip"
        path.write_bytes(archive)
        return path

    def _remove_upload(self, job: Job) -> None:
        (self._uploads / f"{job.id}.zip").unlink(missing_ok=True)

    # Reading and ending.

    async def get(self, tenant_id: TenantId, installation_id: InstallationId) -> Installation:
        """Raises NotFound."""
        async with self._database.read() as db:
            found = await installations.find(db, tenant_id, installation_id)
        if found is None:
            raise NotFound(f"there is no installation {installation_id}", code="installation_not_found")
        return found

    async def page(self, tenant_id: TenantId, page: Page) -> Sequence[Installation]:
        async with self._database.read() as db:
            return await installations.page(db, tenant_id, page)

    async def cancel(self, principal: Principal, installation_id: InstallationId) -> None:
        """End it; nothing to do when it has ended, or is just being recorded. Raises NotFound."""
        await self.get(principal.tenant_id, installation_id)
        job = self._jobs.get(installation_id)
        if job is not None and job.tenant_id == principal.tenant_id:
            async with self._database.write() as db:
                await record(db, self._clock, principal, "cancelInstallation", target=installation_id)
            await self._cancel([job], "it was cancelled")

    async def end_tenant(self, tenant_id: TenantId) -> None:
        """End those of a tenant that was suspended or deleted."""
        await self._cancel(
            [job for job in self._jobs.values() if job.tenant_id == tenant_id], "its tenant was suspended"
        )

    async def _cancel(self, jobs: Sequence[Job], why: str) -> None:
        for job in jobs:
            if job.task is not None and not job.is_ending:
                job.why_cancelled = why
                job.task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await asyncio.gather(*(job.ended.wait() for job in jobs))

    async def recover(self) -> int:
        """Those of an earlier process ended with it; how many. Before anything else begins."""
        await asyncio.to_thread(shutil.rmtree, self._uploads, ignore_errors=True)
        code = "server_restarted"
        failure = {"code": code, "detail": "the server was restarted meanwhile; install it again"}
        async with self._database.write() as db:
            return await installations.fail_running_of_all_tenants(db, failure, self._clock.now())

    async def close(self) -> None:
        """End all that go on: the server stops."""
        await self._cancel(list(self._jobs.values()), "the server stopped")
        self._kitchen.sources.close()
        self._kitchen.wheels.close()
        for task in list(self._reports):
            task.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)

    # Working.

    async def _run(self, job: Job) -> None:
        """The job to its end, whatever that is: its row says so, and nothing of a failure is left."""
        assembly = Assembly(self._kitchen, job.order, lambda *told: self._report(job, *told), partial(self._admit, job))
        try:
            async with self._line(job.tenant_id), self._places:
                await self._work(job, assembly)
        except DomainError as error:
            job.error = error
        except TimeoutError:
            seconds = self._limits.install_timeout.total_seconds()
            job.error = Invalid(f"installing took longer than {seconds:.0f} s", code="installation_timeout")
        except asyncio.CancelledError:
            job.error = Conflict(job.why_cancelled, code="installation_cancelled")
        except Exception as error:
            if is_no_room(error):
                job.error = disk_full()
            else:
                log.exception("an installation failed", installation_id=job.id)
                job.error = Unavailable("the server failed to install it; try again", code="internal")
        job.is_ending = True
        await self._finish(job, assembly)

    def _admit(self, job: Job, footprint: Footprint) -> None:
        """Count a tree before it is written, until its collection's row says it. From any thread."""
        size = Size(footprint.bytes, footprint.files)
        self._disk.require_room(size.bytes, size.entries)
        self._disk_use.require_now(job.tenant_id, size)
        self._disk_use.expect(job.tenant_id, job.id, size)

    def _line(self, tenant_id: TenantId) -> asyncio.Lock:
        line = self._lines.get(tenant_id)
        if line is None:
            line = self._lines[tenant_id] = asyncio.Lock()
        return line

    async def _work(self, job: Job, assembly: Assembly) -> None:
        async with asyncio.timeout(self._limits.install_timeout.total_seconds()):
            image = await assembly.root()
            async with workshop(self._fleet, self._kitchen.trees, job.tenant_id, job.id) as at:
                inspection = await assembly.complete(image, at)
                self._check(job, inspection.manifest)
                if await assembly.packages(image, inspection, at):
                    inspection = await assembly.complete(image, at)
                    self._check(job, inspection.manifest)
        manifest = inspection.manifest
        if any(one.name.startswith(manifest.name + ":") for one in (await self._bundled()).profiles):
            raise Conflict(f"{manifest.name!r} is the name of a bundled collection; choose another", code="name_taken")
        image.name = manifest.name
        job.is_ending = True
        job.collection, replaced = await self._record(job, image, manifest, assembly.warnings)
        job.warnings = assembly.warnings
        await self._kitchen.garbage.touch(replaced)

    def _check(self, job: Job, manifest: protocol.CollectionManifest) -> None:
        """A sandbox may say anything: that a collection has another's name, for one."""
        if job.order.name is not None and manifest.name != job.order.name:
            raise Invalid(f"it can't be named {job.order.name!r}", code="collection_invalid")
        if manifest.name == _NOT_A_NAME:
            raise Conflict(f"{manifest.name!r} can't be a collection's name; choose another", code="name_taken")
        strange = next((one.name for one in manifest.profiles if not one.name.startswith(manifest.name + ":")), None)
        if strange is not None:
            raise Invalid(f"its profile {strange[:100]!r} is not named for it", code="collection_invalid")

    async def _record(
        self, job: Job, image: protocol.Image, manifest: protocol.CollectionManifest, warnings: list[str]
    ) -> tuple[Collection, set[str]]:
        """The row, committed with the job's end; and the trees of the content that it replaces.

        The same content from the same source is left as it is, with who installed it first.
        """
        row = Collection(
            id=new_collection_id(),
            tenant_id=job.tenant_id,
            name=manifest.name,
            version=manifest.version,
            description=manifest.description,
            source=job.order.source,
            commit=image.root.commit,
            content_hash=image_hash(image),
            image=image.model_dump(),
            manifest=manifest.model_dump(),
            installed_at=self._clock.now(),
            installed_by=job.member_id,
        )
        async with self._database.write() as db:
            there = await collections.page(db, job.tenant_id)
            old = next((one for one in there if one.name == row.name), None)
            if old is None and len(there) >= _MAX_COLLECTIONS:
                raise Conflict(f"a tenant has at most {_MAX_COLLECTIONS} collections", code="too_many_collections")
            is_same = old is not None and (old.content_hash, old.source) == (row.content_hash, row.source)
            if old is not None and is_same:
                row = old
            else:
                await collections.put(db, job.tenant_id, row)
            ended = {"status": InstallationStatus.INSTALLED.value, "finished_at": self._clock.now(), "phase": ""}
            if not await installations.change(
                db, job.tenant_id, job.id, collection=row.name, warnings=warnings, detail="", **ended
            ):
                raise Conflict("the installation has ended already", code="installation_cancelled")
            told = {"installation_id": job.id, "member_id": job.member_id, "name": row.name, "version": row.version}
            await emit(db, self._clock, job.tenant_id, EventType.COLLECTION_INSTALLED, told)
            replaced = trees_of(old.image) if old is not None and not is_same else set()
        return row, replaced

    async def _finish(self, job: Job, assembly: Assembly) -> None:
        """Let go of everything, and tell. What else is done here must not keep anybody from being told."""
        try:
            self._kitchen.garbage.let_go(assembly.held)
            if job.error is not None:
                await self._record_failure(job, job.error, assembly.warnings)
            await asyncio.to_thread(self._remove_upload, job)
            # Nobody fills the disk with what is refused; of what is installed, the wheels go.
            await self._kitchen.garbage.drop(list(dict.fromkeys(assembly.held)))
        except Exception:
            log.exception("an installation could not be cleaned up", installation_id=job.id)
        finally:
            del self._jobs[job.id]
            self._disk_use.settle(job.tenant_id, job.id)
            job.ended.set()
        if job.collection is not None:
            log.info("collection installed", tenant_id=job.tenant_id, name=job.collection.name, source=job.order.source)

    async def _record_failure(self, job: Job, error: DomainError, warnings: list[str]) -> None:
        failure = {"code": error.stable_code, "detail": error.detail[:4000]}
        log.info("collection not installed", tenant_id=job.tenant_id, installation_id=job.id, code=error.stable_code)
        async with self._database.write() as db:
            await installations.change(
                db,
                job.tenant_id,
                job.id,
                status=InstallationStatus.FAILED.value,
                failure=failure,
                warnings=warnings,
                finished_at=self._clock.now(),
            )
            told = {"installation_id": job.id, "member_id": job.member_id, "code": error.stable_code}
            await emit(db, self._clock, job.tenant_id, EventType.COLLECTION_FAILED, told)

    def _report(self, job: Job, phase: str, detail: str, done: int, total: int) -> None:
        """Write how far it is: a new phase at once, the rest now and then. Nobody waits for that."""
        now = monotonic()
        if phase == job.phase and now - job.reported_at < _REPORT_SECONDS:
            return
        job.phase, job.reported_at = phase, now
        values = {"phase": phase, "detail": detail, "done": done, "total": total}
        task = asyncio.create_task(self._write_report(job, values))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _write_report(self, job: Job, values: dict[str, object]) -> None:
        try:
            async with self._database.write() as db:
                await installations.change(db, job.tenant_id, job.id, **values)
        except Exception:
            log.exception("an installation's progress could not be written", installation_id=job.id)


def _row(job: Job, now: datetime) -> Installation:
    return Installation(
        id=job.id,
        tenant_id=job.tenant_id,
        member_id=job.member_id,
        source=job.order.source,
        status=InstallationStatus.RUNNING.value,
        phase="waiting",
        total=1,
        warnings=[],
        created_at=now,
    )


__all__ = ["UPLOAD", "Installations", "Job", "Order"]
