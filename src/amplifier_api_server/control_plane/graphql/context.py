"""What the fields of one document share: who asks, what they may, how their limits stand, and what is read together.

One for each operation of a document that is carried out; on a socket, a new one for each `subscribe`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias, TypeVar

from strawberry.types import Info as StrawberryInfo

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.gate import Gate
from amplifier_api_server.control_plane.graphql.loaders import Loaders
from amplifier_api_server.control_plane.graphql.measure import width
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.operations import Operation
from amplifier_api_server.control_plane.routes import ClientLeft
from amplifier_api_server.control_plane.services import Services
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, Forbidden, Invalid

Result = TypeVar("Result")


@dataclass(eq=False)
class Context:
    """`info.context`."""

    services: Services
    principal: Principal
    standings: dict[str, Standing] = field(default_factory=dict)  # of the limits that were taken, by their names
    entered: int = 0  # root fields that were let in, or refused by their permission or a limit
    left: asyncio.Event = field(default_factory=asyncio.Event)  # the client went away
    _spent: int = 0

    @property
    def settings(self) -> Settings:
        return self.services.settings

    @cached_property
    def loaders(self) -> Loaders:
        return Loaders(self.services.database, self.principal.tenant_id, self.settings)

    @cached_property
    def _gate(self) -> Gate:
        return Gate(self.services.admission)

    def took(self, standings: Sequence[Standing]) -> None:
        """A service took limits for a field, in place of the gate."""
        self.standings |= {one.name: one for one in standings}

    def spend(self, info: Info, items: int) -> None:
        """A list that no page bounds turned out to be so long: what it really costs. Raises Invalid before that is spent."""
        raw = info._raw_info  # noqa: SLF001 - the only way to the fields that are asked for
        self._spent += items * width(raw.field_nodes, raw.fragments)
        limit = self.settings.graphql.max_cost
        if self._spent > limit:
            raise Invalid(
                f"the lists of this document are longer than it may cost ({limit}): ask for shorter pages, or fewer fields",
                code="document_too_complex",
                limit_value=limit,
            )

    def demand(self, permission: str) -> None:
        """Of a field within another one, which shows what that one's permission is not about. Raises Forbidden."""
        if not self.principal.may(permission):
            raise Forbidden(
                f"this caller's role ({self.principal.role}) does not have {permission}", permission=permission
            )

    async def carry_out(self, operation: Operation, work: Callable[[], Awaitable[Result]]) -> Result:
        """Let the caller in and do the work of a root field."""
        self.entered += 1
        self.standings |= {one.name: one for one in await self._gate.enter(self.principal, operation)}
        try:
            return await work()
        except DomainError as error:
            if error.standings:
                self.took(error.standings)
            raise

    async def unless_left(self, work: Awaitable[Result]) -> Result:
        """What `work` gives. Raises ClientLeft, and waits no longer, when the client leaves first."""
        running, leaving = asyncio.ensure_future(work), asyncio.create_task(self.left.wait())
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise ClientLeft
            return running.result()
        finally:
            leaving.cancel()
            running.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)


Info: TypeAlias = StrawberryInfo[Context, None]
