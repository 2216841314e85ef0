"""The management endpoints and the logins behind the real edge, with a real OpenID Connect provider beside them."""

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from amplifier_api_server.control_plane.logins.service import LoginDesk
from amplifier_api_server.control_plane.sessions.streams import OpenStreams
from amplifier_api_server.control_plane.settings import Auth
from amplifier_api_server.control_plane.telemetry import Telemetry
from amplifier_api_server.tenants.ids import CredentialId, TenantId
from amplifier_api_server.tenants.models import AuditEntry, Identity, Member, Person
from amplifier_api_server.tenants.repository import audit, subjects
from amplifier_api_server.tenants.repository.pages import Page
from tests.control_plane.accounts.doors import Doors, opened
from tests.control_plane.logins.browser import Browser
from tests.oidc_provider.process import SECRET, running
from tests.tenants.embedded import PEPPER, Embedded, embedded_in


@pytest.fixture(scope="session")
def issuer() -> Iterator[str]:
    with running() as found:
        yield found


def company(issuer: str, **more: Any) -> dict[str, Any]:
    method = {"type": "oauth2", "provider": "oidc", "name": "company", "issuer": issuer, "label": "The Company"}
    return {**method, "client_id": "amplifier", "client_secret": SECRET, **more}


@dataclass
class House:
    """A server with logins, its doors, and browsers."""

    embedded: Embedded
    doors: Doors
    desk: LoginDesk
    issuer: str
    _browsers: list[Browser] = field(default_factory=list)

    def browser(self, **more: Any) -> Browser:
        made = Browser(self.doors.asgi, **more)
        self._browsers.append(made)
        return made

    async def audit(self, tenant_id: str) -> Sequence[AuditEntry]:
        async with self.embedded.database.read() as db:
            return await audit.page(db, TenantId(tenant_id), audit.Wanted(), Page(50))

    async def member(self, who: str, tenant: Any = None, **values: Any) -> Member:
        """A member of a tenant (a new one), who logs in as `who` at the provider."""
        tenant = tenant or await self.embedded.tenant()
        now = self.embedded.clock.now()
        async with self.embedded.database.read() as db:
            known = await subjects.identity_of_all_tenants(db, self.issuer, who)
        person_id = known.person_id if known is not None else f"per_{who}"
        if known is None:
            person = Person(id=person_id, name=who, created_at=now)
            identity = Identity(id=f"idn_{who}", person_id=person_id, provider=self.issuer, subject=who, created_at=now)
            async with self.embedded.database.write() as db:
                await subjects.add_person_of_all_tenants(db, person, identity)
        return await self.embedded.member(tenant, name=who, person_id=person_id, **values)


@contextlib.asynccontextmanager
async def house_in(folder: Path, *methods: dict[str, Any], issuer: str = "", **auth: Any) -> AsyncIterator[House]:
    settings = Auth.model_validate({"methods": [{"type": "api_key"}, *methods], **auth})
    async with embedded_in(folder, auth=settings) as embedded:
        embedded.clock.at = datetime.now(UTC)  # the provider's clock is the machine's
        desk = LoginDesk(embedded.settings, embedded.database, PEPPER, embedded.clock)
        streams = OpenStreams()

        async def on_login_changed(login_id: str) -> None:
            embedded.authenticator.forget_credential(CredentialId(login_id))
            streams.end_credential(CredentialId(login_id))

        embedded.authenticator.logins = desk.known
        more = {"logins": desk, "telemetry": Telemetry(), "streams": streams, "on_login_changed": on_login_changed}
        for name, value in more.items():
            setattr(embedded, name, value)
        async with opened(embedded) as doors:
            house = House(embedded, doors, desk, issuer)
            try:
                yield house
            finally:
                for browser in house._browsers:
                    await browser.close()
                await desk.close()


@pytest.fixture
async def house(tmp_path: Path, issuer: str) -> AsyncIterator[House]:
    async with house_in(tmp_path, company(issuer), issuer=issuer) as made:
        yield made
