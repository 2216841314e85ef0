"""Who a profile is here: the person behind an identity, made when they come for the first time, and their login's row.

Owns the rule of linking: an identity is somebody's for good. An e-mail address links nothing, whoever verified it: addresses
change hands, and a provider that let somebody have yours would have let them have your account.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.auth_settings import OAuth2Auth
from amplifier_api_server.control_plane.logins.known_logins import judge
from amplifier_api_server.control_plane.logins.profiles import Profile
from amplifier_api_server.control_plane.logins.signup import signed_up
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.origin import current_origin
from amplifier_api_server.tenants.errors import Conflict
from amplifier_api_server.tenants.ids import (
    LoginId,
    PersonId,
    new_identity_id,
    new_login_id,
    new_person_id,
)
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import Identity, Login, Person
from amplifier_api_server.tenants.repository import logins, people, subjects
from amplifier_api_server.tenants.repository.logins import LoginFacts
from amplifier_api_server.tenants.repository.people import Membership

MAX_LOGINS: Final = 50  # of one person at once; the oldest ends when there is one more


async def logged_in(
    services: Management, method: OAuth2Auth, profile: Profile, digest: bytes, *, replaces: LoginId | None
) -> Sequence[str]:
    """A login of the person. Commits; the ids of logins that ended for it."""
    try:
        return await _logged_in(services, method, profile, digest, replaces)
    except IntegrityError:  # the same person's first login, from two windows at once: now they are known
        return await _logged_in(services, method, profile, digest, replaces)


async def _logged_in(
    services: Management, method: OAuth2Auth, profile: Profile, digest: bytes, replaces: LoginId | None
) -> Sequence[str]:
    now, origin, times = services.clock.now(), current_origin(), services.settings.auth.login
    async with services.database.write() as db:
        person = await _person(services, db, method, profile)
        person_id = PersonId(person.id)
        ended: list[str] = [replaces] if replaces and await logins.revoke_of_all_tenants(db, replaces, now) else []
        acting = await _acting_as(services, db, method, person)
        row = Login(
            id=new_login_id(),
            person_id=person_id,
            tenant_id=acting.tenant_id if acting is not None else None,
            member_id=acting.member_id if acting is not None else None,
            provider=method.name,
            digest=digest,
            created_at=now,
            expires_at=min(now + times.idle_timeout, now + times.max_duration),
            last_used_at=now,
            address=origin.address,
            user_agent=origin.user_agent,
        )
        await logins.add_of_all_tenants(db, row)
        ended += await logins.revoke_oldest_of_all_tenants(db, person_id, MAX_LOGINS, now)
        facts = (await logins.find_by_digest_of_all_tenants(db, [digest]))[digest]
        if (by := judge(facts, services.settings, now).principal) is not None:
            await record(db, services.clock, by, "finishLogin", target=row.id)
    return ended


async def registered(services: Management, method: OAuth2Auth, profile: Profile, *, link: LoginFacts) -> None:
    """Another identity of the person who is logged in. Commits. Raises Conflict (`identity_taken`)."""
    now = services.clock.now()
    try:
        async with services.database.write() as db:
            known = await subjects.identity_of_all_tenants(db, method.identity_provider, profile.subject)
            if known is not None and known.person_id != link.person_id:
                raise _taken(method)
            if known is not None:
                return
            row = _identity(services, method, profile, PersonId(link.person_id))
            await people.add_identity_of_all_tenants(db, row)
            if (by := judge(link, services.settings, now).principal) is not None:
                changes = {"identity": (None, method.identity_provider)}
                await record(db, services.clock, by, "finishLogin", target=row.id, changes=changes)
    except IntegrityError as error:
        raise _taken(method) from error


def principal_of(services: Management, facts: LoginFacts) -> Principal | None:
    """The member that a login acts as; None where it is one of no tenant."""
    return judge(facts, services.settings, services.clock.now()).principal


async def _person(services: Management, db: AsyncSession, method: OAuth2Auth, profile: Profile) -> Person:
    """Who this is, told anew what the provider says of them. Their name here stays as it was."""
    now, provider = services.clock.now(), method.identity_provider
    known = await subjects.identity_of_all_tenants(db, provider, profile.subject)
    if known is None:
        person = Person(id=new_person_id(), name=profile.name, email=profile.email, created_at=now, last_login_at=now)
        identity = _identity(services, method, profile, PersonId(person.id))
        await subjects.add_person_of_all_tenants(db, person, identity)
        return person
    person_id = PersonId(known.person_id)
    found = await people.find_of_all_tenants(db, person_id)
    assert found is not None, "an identity has its person: the foreign key says so"
    email = profile.email
    if email is None and found.email != known.email:
        email = found.email  # verified by another provider; what this one verified once counts no more
    await people.change_of_all_tenants(db, person_id, now, email=email)
    await people.change_identity_of_all_tenants(db, known.id, name=profile.name, email=profile.email)
    return found


async def _acting_as(services: Management, db: AsyncSession, method: OAuth2Auth, person: Person) -> Membership | None:
    """Which of their members they act as: the one of their last login, or else the oldest that works."""
    person_id = PersonId(person.id)
    memberships = await people.memberships_of_all_tenants(db, person_id)
    if not memberships:
        return await signed_up(services, db, method, person) if method.signup == "tenant" else None
    last = await logins.last_of_all_tenants(db, person_id)
    works = [
        one
        for one in memberships
        if one.status == MemberStatus.ACTIVE.value and one.tenant_status == TenantStatus.ACTIVE.value
    ]
    before = [one for one in works if last is not None and one.tenant_id == last.tenant_id]
    return (before or works or memberships)[0]


def _identity(services: Management, method: OAuth2Auth, profile: Profile, person_id: PersonId) -> Identity:
    return Identity(
        id=new_identity_id(),
        person_id=person_id,
        provider=method.identity_provider,
        subject=profile.subject,
        name=profile.name,
        email=profile.email,
        created_at=services.clock.now(),
    )


def _taken(method: OAuth2Auth) -> Conflict:
    return Conflict(
        f"this {method.label or method.name} account logs in as somebody else here; log in with it instead",
        code="identity_taken",
    )
