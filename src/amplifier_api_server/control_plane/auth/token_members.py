"""Whom a verified token is of: rows to verdicts, and the member that somebody becomes at their first token.

Invariants: a tenant that is not there, or not active, has no members; one who was removed stays so, whatever their issuer
says, until an admin takes them back; one who is disabled is never enabled by a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import structlog
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import differences, record
from amplifier_api_server.control_plane.auth.claims import Claimed, Subject, role_and_grants, widest
from amplifier_api_server.control_plane.auth.credentials import DISABLED, SUSPENDED, Verdict, limits_for
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.members.bounds import require_room
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.control_plane.tenant_events.recording import EventType, emit
from amplifier_api_server.tenants.errors import Forbidden
from amplifier_api_server.tenants.ids import (
    CredentialId,
    MemberId,
    PersonId,
    TenantId,
    new_identity_id,
    new_member_id,
    new_person_id,
)
from amplifier_api_server.tenants.lifecycle import MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import Identity, Member, Person
from amplifier_api_server.tenants.permissions import TENANT_ROLES
from amplifier_api_server.tenants.repository import members, subjects
from amplifier_api_server.tenants.repository.subjects import MemberFacts, TenantFacts

log = structlog.get_logger(__name__)

_ROLES_TOGETHER: Final = 400  # in one query, with two parameters each
_BY: Final = "system"  # in the audit log: the issuer's word made it, nobody here did
NO_MEMBER = Verdict(
    None, Forbidden, "you are no member of the tenant that your token names; ask an admin of it", "not_a_member"
)
_NO_TENANT = Verdict(None, Forbidden, "the tenant that your token names is not here", "not_a_member")
_REMOVED = Verdict(
    None, Forbidden, "you were removed from the tenant that your token names; ask an admin of it", "not_a_member"
)
_NO_ROLE = Verdict(
    None, Forbidden, "your token gives you no role that is known in this tenant; ask whoever issues it", "no_role"
)


class TokenMembers:
    """One a process."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock

    async def read(self, wanted: Sequence[Subject]) -> Mapping[Subject, Verdict]:
        """A verdict for each: three queries, however many there are."""
        async with self._database.read() as db:
            tenants = await subjects.tenants_of_all_tenants(db, {one.tenant_id for one in wanted})
            found = await subjects.members_of_all_tenants(
                db, {(one.issuer, one.subject, one.tenant_id) for one in wanted}
            )
            named = {
                (one.tenant_id, role)
                for one in wanted
                for role in _roles_of(one, found.get((one.issuer, one.subject, one.tenant_id)))
            }
            roles = await _permissions(db, named)
        own: dict[str, dict[str, list[str]]] = {}
        for (tenant_id, name), permissions in roles.items():
            own.setdefault(tenant_id, {})[name] = permissions
        return {
            one: self._judge(
                one,
                tenants.get(one.tenant_id),
                found.get((one.issuer, one.subject, one.tenant_id)),
                own.get(one.tenant_id, {}),
            )
            for one in wanted
        }

    async def take_in(self, claimed: Claimed) -> None:
        """Make somebody a member. Commits. Raises Unavailable, Conflict (`too_many_members`).

        Safe to do again, and at once elsewhere: what is there already is what was wanted.
        """
        try:
            async with self._database.write() as db:
                await self._take_in(db, claimed)
        except IntegrityError:
            log.info("somebody was taken in elsewhere at the same moment", tenant=claimed.subject.tenant_id)

    async def is_as_listed(self, claimed: Claimed, principal: Principal) -> bool:
        """Whether the member's row says what the token does."""
        async with self._database.read() as db:
            row = await members.find(db, principal.tenant_id, principal.member_id)
        return row is None or not _news(row, claimed, principal.role)

    async def bring_up_to_date(self, claimed: Claimed, principal: Principal) -> None:
        """Write down what the token says of the member. Commits."""
        async with self._database.write() as db:
            row = await members.find(db, principal.tenant_id, principal.member_id)
            if row is None:
                return
            news = _news(row, claimed, principal.role)
            changes = differences({name: getattr(row, name) for name in news}, news)
            for name, value in news.items():
                setattr(row, name, value)
            await db.flush()
            await self._tell(db, "updateMember", EventType.MEMBER_UPDATED, row, changes)

    async def _take_in(self, db: AsyncSession, claimed: Claimed) -> None:
        subject, now = claimed.subject, self._clock.now()
        tenant_id = TenantId(subject.tenant_id)
        role = await self._role_at_first(db, subject)
        tenant = (await subjects.tenants_of_all_tenants(db, [tenant_id])).get(tenant_id)
        if role is None or tenant is None or tenant.status != TenantStatus.ACTIVE:
            return
        identity = await subjects.identity_of_all_tenants(db, subject.issuer, subject.subject)
        if identity is None:
            person = Person(id=new_person_id(), name=claimed.name, email=claimed.email, created_at=now)
            identity = Identity(
                id=new_identity_id(),
                person_id=person.id,
                provider=subject.issuer,
                subject=subject.subject,
                name=claimed.name,
                email=claimed.email,
                created_at=now,
            )
            await subjects.add_person_of_all_tenants(db, person, identity)
        elif await subjects.member_of(db, tenant_id, PersonId(identity.person_id)) is not None:
            return
        await require_room(db, self._settings, tenant)
        member = Member(
            id=new_member_id(),
            tenant_id=tenant_id,
            name=claimed.name,
            role=role,
            kind="service" if claimed.is_service else "person",
            status=MemberStatus.ACTIVE.value,
            person_id=identity.person_id,
            email=claimed.email,
            limits={},
            created_at=now,
        )
        await members.add(db, tenant_id, member)
        await self._tell(db, "createMember", EventType.MEMBER_ADDED, member, {"role": (None, role)})
        log.info("a token's subject became a member", tenant=tenant_id, member=member.id, issuer=subject.issuer)

    async def _role_at_first(self, db: AsyncSession, subject: Subject) -> str | None:
        """The role that a new member is listed with; None where the token gives none."""
        names = _roles_of(subject, None)
        found = await _permissions(db, {(subject.tenant_id, name) for name in names})
        own = {name: permissions for (_, name), permissions in found.items()}
        chosen = role_and_grants(subject.roles or (), subject.default_role, own)
        return widest(chosen[0]) if chosen is not None else None

    async def _tell(
        self,
        db: AsyncSession,
        action: str,
        event: EventType,
        row: Member,
        changes: Mapping[str, tuple[object, object]],
    ) -> None:
        tenant_id = TenantId(row.tenant_id)
        await record(db, self._clock, _BY, action, tenant_id=tenant_id, target=row.id, changes=changes)
        await emit(db, self._clock, tenant_id, event, {"member_id": row.id, "name": row.name, "role": row.role})

    def _judge(
        self, wanted: Subject, tenant: TenantFacts | None, member: MemberFacts | None, own: Mapping[str, list[str]]
    ) -> Verdict:
        if tenant is None or tenant.status not in (TenantStatus.ACTIVE, TenantStatus.SUSPENDED):
            return _NO_TENANT
        if tenant.status == TenantStatus.SUSPENDED:
            return SUSPENDED
        if member is not None and member.status != MemberStatus.ACTIVE:
            return DISABLED if member.status == MemberStatus.DISABLED else _REMOVED
        if member is None:
            chosen = role_and_grants(wanted.roles or (), wanted.default_role, own)
            return NO_MEMBER if chosen is not None else _NO_ROLE
        if wanted.roles is None:
            chosen = role_and_grants((member.role,), None, own)
        else:
            chosen = role_and_grants(wanted.roles, wanted.default_role, own)
        if chosen is None:
            return _NO_ROLE
        role, grants = chosen
        return Verdict(
            Principal(
                credential_id_of(wanted),
                TenantId(tenant.id),
                MemberId(member.member_id),
                role,
                grants,
                tenant.tier,
                limits_for(self._settings, tenant.id, tenant.tier, tenant.limits, member.limits),
                method="bearer",
                person_id=PersonId(member.person_id),
                proof=wanted,
            )
        )


def credential_id_of(subject: Subject) -> CredentialId:
    """The same for all tokens of one subject: it is what the log and the audit know them by."""
    text = f"{subject.issuer}\0{subject.subject}".encode()
    return CredentialId("jwt_" + hashlib.blake2b(text, digest_size=12).hexdigest())


async def _permissions(db: AsyncSession, named: Collection[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """What tenants' own roles hold. Built-in ones have no rows; the others are asked for by the few hundred."""
    own = sorted(one for one in named if one[1] not in TENANT_ROLES)
    found: dict[tuple[str, str], list[str]] = {}
    for start in range(0, len(own), _ROLES_TOGETHER):
        found |= await subjects.roles_of_all_tenants(db, own[start : start + _ROLES_TOGETHER])
    return found


def _roles_of(subject: Subject, member: MemberFacts | None) -> set[str]:
    """Every role whose row may matter."""
    found = {*(subject.roles or ()), subject.default_role or ""}
    if subject.roles is None and member is not None:
        found.add(member.role)
    return found - {""}


def _news(row: Member, claimed: Claimed, role: str) -> dict[str, str]:
    """What a token says differently of a member: the role, where the issuer decides it."""
    wanted = {} if claimed.subject.roles is None else {"role": widest(role)}
    if claimed.email is not None:
        wanted["email"] = claimed.email
    return {name: value for name, value in wanted.items() if getattr(row, name) != value}
