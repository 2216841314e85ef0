from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.settings import Auth
from amplifier_api_server.tenants.models import Tenant
from tests.control_plane.auth.issuer import AUDIENCE, Issuer, issuing
from tests.tenants.embedded import Embedded, embedded, embedded_in

__all__ = ["embedded"]


@dataclass
class House:
    """A server that believes one issuer, and a tenant there."""

    embedded: Embedded
    issuer: Issuer
    tenant: Tenant

    def token(self, **given: Any) -> str:
        return self.issuer.token(self.embedded.clock.now(), **({"tenant_id": self.tenant.id} | given))

    async def enter(self, token: str) -> Principal:
        return await self.embedded.authenticator.authenticate([(b"authorization", b"Bearer " + token.encode())])


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with issuing() as found:
        yield found


def believing(issuer: Issuer, **method: Any) -> Auth:
    given = {"type": "bearer", "issuer": issuer.url, "audience": AUDIENCE} | method
    return Auth.model_validate({"methods": [{"type": "api_key"}, given]})


@pytest.fixture
async def house(tmp_path: Path, issuer: Issuer) -> AsyncIterator[House]:
    async with embedded_in(tmp_path, auth=believing(issuer)) as made:
        yield House(made, issuer, await made.tenant())
