"""The sandbox of one installation, as its job sees it: trees are put in, questions asked, packages taken out.

Owns turning whatever goes wrong in there into an error of the collection: who hangs, dies or answers nonsense over what it
was given to read has been given something that is to blame.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from amplifier_api_server.control_plane.catalog.trees import Trees
from amplifier_api_server.control_plane.disk import disk_full
from amplifier_api_server.control_plane.pods.calls import RuntimeRefused
from amplifier_api_server.control_plane.pods.fleet import Fleet
from amplifier_api_server.control_plane.pods.launcher import Address, LaunchError, NoRoomError
from amplifier_api_server.control_plane.router.errors import HeadTimeout, IdleTimeout, RouterError
from amplifier_api_server.runtime import protocol
from amplifier_api_server.tenants.errors import Invalid, TooLarge
from amplifier_api_server.tenants.ids import InstallationId, RuntimeId, TenantId

# What a sandbox may blame a collection for in its own words. Anything else it says becomes `collection_invalid`.
_CODES = frozenset({"collection_invalid", "profile_invalid", "build_failed"})
_ENDING_LOOKS = 20  # a connection breaks a moment before its process is seen to have ended
_ENDING_PAUSE_SECONDS = 0.1


class Workshop:
    """One private runtime."""

    def __init__(
        self, fleet: Fleet, trees: Trees, installation_id: InstallationId, runtime_id: RuntimeId, address: Address
    ) -> None:
        self._fleet = fleet
        self._trees = trees
        self._build_id = installation_id
        self._runtime_id = runtime_id
        self._address = address

    async def put(self, trees: Sequence[str]) -> None:
        """Have these trees be there; nothing to do for those that are."""
        async with self._blaming("collection_invalid"):
            for tree in trees:
                await self._fleet.launcher.install(self._runtime_id, tree, str(self._trees.path(tree)))

    async def inspect(self, image: protocol.Image, *, skip_missing: bool = False) -> protocol.Inspection:
        """Raises Invalid."""
        async with self._blaming("collection_invalid"):
            asked = protocol.Inspect(image=image, use=image.modules, skip_missing=skip_missing)
            return await self._fleet.calls.inspect(self._address, asked)

    async def build(self, body: protocol.Build) -> protocol.Built:
        """Raises Invalid, TooLarge."""
        async with self._blaming("build_failed"):
            return await self._fleet.calls.build(self._address, self._build_id, body)

    async def packages(self, into: Path, *, max_bytes: int) -> None:
        """Write what was built into a new file. Raises Invalid."""
        with await asyncio.to_thread(into.open, "xb") as file:
            async with self._blaming("build_failed"):
                await self._fleet.calls.packages(self._address, self._build_id, file, max_bytes=max_bytes)

    @asynccontextmanager
    async def _blaming(self, code: str) -> AsyncIterator[None]:
        try:
            yield
        except RuntimeRefused as error:
            failure = error.failure
            if failure.code == TooLarge.code:
                raise TooLarge(failure.detail) from error
            raise Invalid(failure.detail, code=failure.code if failure.code in _CODES else code) from error
        except NoRoomError as error:
            raise disk_full() from error
        except (RouterError, LaunchError) as error:
            told = await self._why(error)
            raise Invalid(f"the sandbox that worked on it gave up: {told}", code=code) from error

    async def _why(self, error: Exception) -> str:
        if isinstance(error, (HeadTimeout, IdleTimeout)):
            return "it did not answer in time"
        for _ in range(_ENDING_LOOKS):
            reason = await self._fleet.why_ended(self._runtime_id)
            if reason:
                return reason
            await asyncio.sleep(_ENDING_PAUSE_SECONDS)
        return str(error)


@asynccontextmanager
async def workshop(
    fleet: Fleet, trees: Trees, tenant_id: TenantId, installation_id: InstallationId
) -> AsyncIterator[Workshop]:
    """A sandbox for this installation alone, ended with the block. Raises Unavailable."""
    async with fleet.private(tenant_id, f"install:{installation_id}") as (runtime_id, address):
        yield Workshop(fleet, trees, installation_id, runtime_id, address)
