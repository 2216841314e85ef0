"""How runtimes are started, seen and ended: one protocol; `local`, `memory` and later `kubernetes` behind it.

A launcher knows processes or pods, not tenants' rules, sessions' states or the database. `docs/adding-a-launcher.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from amplifier_api_server.control_plane.pods.trees import Size
from amplifier_api_server.tenants.ids import RuntimeId, SessionId, TenantId


@dataclass(frozen=True, slots=True)
class Address:
    """Where a runtime listens: a Unix socket's path, or host and port. Exactly one of them."""

    path: str | None = None
    host: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """One runtime as it was just read. `running` is None when that could not be told: never taken for gone."""

    id: RuntimeId
    running: bool | None
    address: Address | None
    reason: str = ""  # why it isn't running: an exit status, "killed: memory over 512 MiB"


class LaunchError(Exception):
    """A runtime could not be started, said in words an operator can act on."""


class NoRoomError(LaunchError):
    """The disk is full, or would be."""


class NotCopiableError(LaunchError):
    """What a session's folder holds can't be copied as it is, however often that is tried."""


class Launcher(Protocol):
    """Starts, sees and ends runtimes. Every method is idempotent and returns within its own timeout."""

    async def start(self, runtime_id: RuntimeId) -> None:
        """Start a runtime without identity; returns when it answers on its socket. Raises LaunchError and leaves nothing."""

    async def stop(self, runtime_id: RuntimeId, reason: str, *, grace_seconds: float = 2.0) -> None:
        """End it and everything in it: SIGTERM, then SIGKILL after the grace. Returns when nothing of it runs."""

    async def list(self) -> list[Observed]:
        """Everything of ours that runs or left something, started by this process or an earlier one."""

    def address(self, runtime_id: RuntimeId) -> Address | None:
        """Where it listens; None for one that is not known to run."""

    def on_exit(self, wake: Callable[[RuntimeId], None]) -> None:
        """Call `wake` soon after a runtime ends. It carries no more than that: what is true is read by `list`."""

    async def attach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        """Put the session's folder, as it was left or new and empty, into the runtime's workspace.

        Nothing to do when it is there already. Raises LaunchError when the runtime is not running.
        """

    async def detach(self, runtime_id: RuntimeId, tenant_id: TenantId, session_id: SessionId) -> None:
        """Take it out again, to be attached elsewhere; also from a runtime that is gone."""

    async def copy(self, tenant_id: TenantId, source: SessionId, target: SessionId) -> None:
        """Give `target`, which has no folder yet, a copy of the folder of `source`, which is attached to nothing.

        Symbolic links stay what they are; what is neither file, folder nor link is left out. Raises LaunchError;
        NotCopiableError and NoRoomError among them.
        """

    async def size(self, tenant_id: TenantId, session_id: SessionId) -> Size | None:
        """What the session's folder takes on the disk, counted now; None while it is attached. Raises LaunchError."""

    def held(self, runtime_id: RuntimeId) -> Size | None:
        """What the runtime's workspace took when it was measured last; None where that was before its last `attach`."""

    def on_growth(self, is_over: Callable[[RuntimeId, int], bool]) -> None:
        """Ask `is_over`, from any thread, whether a runtime's tenant has no room left, where the runtime has written so many
        bytes more than `held` says: what grows there is ended then.
        """

    async def forget(self, tenant_id: TenantId, session_id: SessionId) -> None:
        """Delete the session's folder. Nothing to do when there is none."""

    async def install(self, runtime_id: RuntimeId, content_hash: str, folder: str) -> None:
        """Copy an unpacked collection, read-only, to where the runtime finds it as COLLECTIONS/{content_hash}."""

    async def close(self) -> None:
        """End everything that this process started, and let go of all resources."""
