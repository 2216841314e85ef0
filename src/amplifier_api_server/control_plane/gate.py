"""The gate: what stands between a caller and an operation, whichever door they came by.

Owns the order: the permission first, then the limits, then room on the disk. Refuses to know doors. Invariant: no
operation that has a permission runs before `enter` has returned for it.
"""

from __future__ import annotations

from typing import Protocol

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.limits.backend import Standing
from amplifier_api_server.control_plane.operations import Admit, Operation
from amplifier_api_server.tenants.errors import Forbidden, InsufficientStorage


class AdmitsRequests(Protocol):
    """The limits' side."""

    async def request(self, principal: Principal) -> Standing: ...

    async def request_ahead(self, principal: Principal, *, is_kept: bool) -> Standing: ...

    async def has_disk_left(self, principal: Principal, *, may_free: bool) -> None: ...


class Gate:
    """One a process."""

    def __init__(self, admission: AdmitsRequests) -> None:
        self._admission = admission

    async def enter(self, principal: Principal, operation: Operation) -> tuple[Standing, ...]:
        """Let the caller begin the operation; how the limits stand that were taken for it.

        Raises Forbidden, Refused, InsufficientStorage. A request counts here, before its body is read. A service that takes
        further limits takes this one over, and gives it back where it is refused the rest, unless reading its body was work.
        """
        for permission in operation.permissions:
            if not principal.may(permission):
                raise Forbidden(
                    f"this caller's role ({principal.role}) does not have {permission}", permission=permission
                )
        standings: tuple[Standing, ...] = ()
        if operation.admit is Admit.EDGE:
            standings = (await self._admission.request(principal),)
        elif operation.admit is Admit.SERVICE:
            standings = (await self._admission.request_ahead(principal, is_kept=operation.is_large),)
        if operation.grows and not principal.is_operator:
            try:
                await self._admission.has_disk_left(principal, may_free=operation.may_free)
            except InsufficientStorage as error:
                error.standings = standings  # it counted all the same
                raise
        return standings
