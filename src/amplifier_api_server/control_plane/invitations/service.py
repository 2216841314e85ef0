"""Invitations: offers to become a member, each taken once, by somebody who has logged in.

Owns their tokens: shown once, stored as an HMAC with the installation's pepper. Invariants: an invitation makes one member at
most, also of two who take it at once; it gives what its maker may still give when it is taken; whoever was removed can be
invited again, and nobody is a member of a tenant twice.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.audit.recording import By, differences, record
from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.clock import rfc3339
from amplifier_api_server.control_plane.members import service as members_service
from amplifier_api_server.control_plane.needs import Management
from amplifier_api_server.control_plane.roles import rights
from amplifier_api_server.tenants.errors import Closed, Conflict, Forbidden, Invalid, NotFound
from amplifier_api_server.tenants.ids import (
    CredentialId,
    InvitationId,
    MemberId,
    PersonId,
    TenantId,
    new_invitation_id,
    new_member_id,
    random_base62,
)
from amplifier_api_server.tenants.lifecycle import InvitationStatus, MemberStatus, TenantStatus
from amplifier_api_server.tenants.models import Invitation, Member, Person, Tenant
from amplifier_api_server.tenants.permissions import beyond
from amplifier_api_server.tenants.repository import invitations, members, tenants
from amplifier_api_server.tenants.repository.pages import Page
from amplifier_api_server.tenants.tiers import DEFAULT

MIN_LIFE_SECONDS = 60
DEFAULT_LIFE_SECONDS = 7 * 24 * 3600
MAX_LIFE_SECONDS = 30 * 24 * 3600
MAX_PENDING = 1_000  # of one tenant
_PREFIX = "amp_inv_"
_TOKEN = re.compile(rf"{_PREFIX}[0-9A-Za-z]{{40}}", re.ASCII)
_EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")
_MAX_NAME_CHARS = 100
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True, slots=True)
class Wish:
    """What an invitation should be."""

    email: str
    role: str
    expires_in_seconds: int = DEFAULT_LIFE_SECONDS
    any_email: bool = False  # whoever holds the token may take it


@dataclass(frozen=True, slots=True)
class NewInvitation:
    """An invitation's row, and its token to be shown once."""

    row: Invitation
    token: str

    def __repr__(self) -> str:
        return f"NewInvitation(id={self.row.id!r})"


@dataclass(frozen=True, slots=True)
class Offer:
    """What somebody is invited to."""

    tenant_name: str
    role: str


async def create(services: Management, tenant_id: TenantId, by: By, wish: Wish) -> NewInvitation:
    """A new invitation. Commits. Raises Invalid, Forbidden, Conflict (`too_many_invitations`, `no_login_method`)."""
    now = services.clock.now()
    if not services.settings.auth.logins:
        detail = "nobody can log in at this server, so nobody could take it: the operator names a login in auth.methods"
        raise Conflict(f"{detail}. POST /v1/members makes a member that has keys alone", code="no_login_method")
    if not _EMAIL.fullmatch(wish.email):
        raise _invalid("email", "should be an e-mail address")
    if not MIN_LIFE_SECONDS <= wish.expires_in_seconds <= MAX_LIFE_SECONDS:
        raise _invalid("expires_in", f"should be from {MIN_LIFE_SECONDS} to {MAX_LIFE_SECONDS} seconds")
    token = _PREFIX + random_base62(40)
    async with services.database.write() as db:
        if await tenants.find(db, tenant_id) is None:
            raise NotFound(f"there is no tenant {tenant_id}", code="tenant_not_found")
        await rights.given(db, tenant_id, wish.role, by)
        if await invitations.count_pending(db, tenant_id, now) >= MAX_PENDING:
            detail = f"{MAX_PENDING} invitations are pending; revoke some, or wait until they expire"
            raise Conflict(detail, code="too_many_invitations")
        row = Invitation(
            id=new_invitation_id(),
            tenant_id=tenant_id,
            email=wish.email,
            any_email=wish.any_email,
            role=wish.role,
            digest=services.authenticator.digest(token),
            status=InvitationStatus.PENDING.value,
            created_at=now,
            created_by=by.member_id if isinstance(by, Principal) else by,
            expires_at=now + timedelta(seconds=wish.expires_in_seconds),
        )
        await invitations.add(db, tenant_id, row)
        given = {"email": wish.email, "role": wish.role, "any_email": wish.any_email}
        changes = differences({}, given | {"expires_at": rfc3339(row.expires_at)})
        await record(db, services.clock, by, "createInvitation", tenant_id=tenant_id, target=row.id, changes=changes)
    return NewInvitation(row, token)


async def page(services: Management, tenant_id: TenantId, page: Page) -> list[Invitation]:
    """Whatever became of them."""
    async with services.database.read() as db:
        return await invitations.page(db, tenant_id, page)


async def find(services: Management, tenant_id: TenantId, invitation_id: InvitationId) -> Invitation:
    """The tenant's invitation. Raises NotFound."""
    async with services.database.read() as db:
        row = await invitations.find(db, tenant_id, invitation_id)
    if row is None:
        raise NotFound(f"there is no invitation {invitation_id}", code="invitation_not_found")
    return row


async def revoke(services: Management, tenant_id: TenantId, by: By, invitation_id: InvitationId) -> None:
    """Nobody can take it any more. Commits. Raises NotFound, also for one that is not pending."""
    async with services.database.write() as db:
        row = await invitations.revoke(db, tenant_id, invitation_id)
        if row is None:
            raise NotFound(f"there is no pending invitation {invitation_id}", code="invitation_not_found")
        changes = {"email": (row.email, None)}
        await record(
            db, services.clock, by, "revokeInvitation", tenant_id=tenant_id, target=invitation_id, changes=changes
        )


async def offered(services: Management, person: Person, token: str) -> Offer:
    """What the person who logged in would get. Raises what `accept` raises."""
    async with services.database.read() as db:
        row, tenant = await _open(services, db, token)
        _require_theirs(person, row)
        if await members.find_person(db, TenantId(tenant.id), PersonId(person.id)) is not None:
            raise _joined()
    return Offer(tenant.name, row.role)


async def accept(services: Management, person: Person, token: str) -> Member:
    """Make the person who logged in a member, as the invitation says. Commits.

    Raises NotFound (`invitation_not_found`), Closed (`invitation_expired`, `invitation_revoked`), Conflict
    (`invitation_used`, `already_member`, `too_many_members`), Forbidden (`invitation_other_email`, `tenant_suspended`).
    """
    try:
        async with services.database.write() as db:
            row, tenant = await _open(services, db, token)
            _require_theirs(person, row)
            member = await _join(services, db, tenant, row, person)
    except IntegrityError as error:  # another invitation of theirs was taken at the same time
        raise _joined() from error
    await services.on_tenant_changed(TenantId(tenant.id))
    return member


async def _open(services: Management, db: AsyncSession, token: str) -> tuple[Invitation, Tenant]:
    """The invitation that a token is good for now, and who invites. Raises as `accept` does."""
    if not _TOKEN.fullmatch(token):
        raise _unknown()
    row = await invitations.find_by_digest_of_all_tenants(db, services.authenticator.digest(token))
    tenant = await tenants.find(db, TenantId(row.tenant_id)) if row is not None else None
    if row is None or tenant is None:
        raise _unknown()
    if tenant.status != TenantStatus.ACTIVE:
        raise Forbidden("the tenant is suspended; ask the operator of this service", code="tenant_suspended")
    if row.status == InvitationStatus.ACCEPTED:
        raise Conflict("this invitation was taken already; ask for a new one", code="invitation_used")
    if row.status == InvitationStatus.REVOKED or not await _is_still_given(db, row):
        raise Closed("this invitation was revoked; ask for a new one", code="invitation_revoked")
    if row.expires_at <= services.clock.now():
        raise Closed("this invitation has expired; ask for a new one", code="invitation_expired")
    return row, tenant


async def _is_still_given(db: AsyncSession, row: Invitation) -> bool:
    """Whether the role is there, and who made the invitation is active and holds it: what they lost, nobody gets."""
    tenant_id = TenantId(row.tenant_id)
    grants = await rights.grants_of(db, tenant_id, row.role)
    if not grants:
        return False
    if not row.created_by.startswith("mem_"):
        return True  # made where the server runs
    maker = await members.find(db, tenant_id, MemberId(row.created_by))
    if maker is None or maker.status != MemberStatus.ACTIVE:
        return False
    return not beyond(grants, await rights.grants_of(db, tenant_id, maker.role))


def _require_theirs(person: Person, row: Invitation) -> None:
    if not row.any_email and (person.email is None or _in_lower_case(person.email) != _in_lower_case(row.email)):
        raise Forbidden(
            "this invitation is for another e-mail address than the one that your login has verified; log in with that, "
            "or ask for an invitation to yours",
            code="invitation_other_email",
        )


def _in_lower_case(email: str) -> str:
    """ASCII's letters alone: Unicode's rules take different addresses for one, such as those with a Kelvin sign and a k."""
    return email.translate(_LOWER)


async def _join(services: Management, db: AsyncSession, tenant: Tenant, row: Invitation, person: Person) -> Member:
    tenant_id, now = TenantId(tenant.id), services.clock.now()
    if await members.find_person(db, tenant_id, PersonId(person.id)) is not None:
        raise _joined()
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name=(person.name or person.email or row.email)[:_MAX_NAME_CHARS],
        role=row.role,
        kind="person",
        person_id=person.id,
        email=person.email,
        limits={},
        created_at=now,
    )
    await members_service.add(services, db, member)
    if not await invitations.accept(db, tenant_id, InvitationId(row.id), MemberId(member.id), now):
        raise Conflict("this invitation was taken already; ask for a new one", code="invitation_used")
    changes = differences({}, {"member_id": member.id, "role": member.role, "email": person.email})
    await record(db, services.clock, _as(member, tenant), "acceptInvitation", target=row.id, changes=changes)
    return member


def _as(member: Member, tenant: Tenant) -> Principal:
    """Who joins, as the audit log names them: there was no credential of this tenant yet."""
    return Principal(
        CredentialId(""),
        TenantId(tenant.id),
        MemberId(member.id),
        member.role,
        frozenset(),
        tenant.tier,
        DEFAULT,
        method="login",
        person_id=PersonId(member.person_id or ""),
    )


def _unknown() -> NotFound:
    return NotFound("there is no such invitation; the link may have been cut", code="invitation_not_found")


def _joined() -> Conflict:
    return Conflict("you are a member of this tenant already", code="already_member")


def _invalid(field: str, message: str) -> Invalid:
    return Invalid(f"{field} {message}", errors=[{"field": field, "message": message}])
