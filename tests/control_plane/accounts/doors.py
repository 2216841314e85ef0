"""The management endpoints behind the real edge, and callers with real keys; without sessions and sandboxes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from amplifier_api_server.control_plane.accounts.bootstrap import FirstKeys, ensure_first_keys
from amplifier_api_server.control_plane.edge import Edge
from amplifier_api_server.control_plane.fair_queue import FairQueue
from amplifier_api_server.control_plane.framework import framework
from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.limits.memory import MemoryLimits
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.telemetry import Telemetry
from tests.tenants.embedded import PEPPER, Embedded


@dataclass
class Doors:
    embedded: Embedded
    first: FirstKeys
    asgi: Any
    admission: Admission
    _clients: list[httpx2.AsyncClient] = field(default_factory=list)

    def caller(self, key: str) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.asgi, raise_app_exceptions=True)
        client = httpx2.AsyncClient(transport=transport, base_url="http://test", headers={"X-API-Key": key})
        self._clients.append(client)
        return client

    @property
    def admin(self) -> httpx2.AsyncClient:
        return self.caller(self.first.tenant_key)

    @property
    def operator(self) -> httpx2.AsyncClient:
        return self.caller(self.first.operator_key)


@contextlib.asynccontextmanager
async def opened(embedded: Embedded) -> AsyncIterator[Doors]:
    routes = route_table(embedded.settings, None)
    app = framework(embedded.settings, routes)
    admission = Admission(MemoryLimits(embedded.clock), embedded.settings, embedded.database, embedded.clock)
    embedded.admission = admission  # type: ignore[attr-defined]
    app.state.services = embedded
    edge = Edge(
        app,
        routes=routes,
        settings=embedded.settings,
        authenticator=embedded.authenticator,
        admission=admission,
        telemetry=Telemetry(),
        queue=FairQueue(),
    )
    first = await ensure_first_keys(embedded.database, embedded.settings.server.data_dir, PEPPER, embedded.clock)
    doors = Doors(embedded, first, edge, admission)
    try:
        yield doors
    finally:
        for client in doors._clients:
            await client.aclose()
