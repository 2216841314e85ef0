"""The first keys of an embedded installation, made at the first start and kept where its operator can read them
again.

Owns `keys.json` in the data folder (0600): the only place that holds keys as text, and only in embedded mode.
Invariant: what the file holds works. The file is written before the rows are committed, so that a kill in between
leaves keys whose rows the next start adds; a lost file gets new keys, and so does one whose keys were revoked or have
expired.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, astuple, dataclass
from datetime import datetime
from pathlib import Path

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.ids import KeyId, TenantId, new_key_id, new_member_id, new_tenant_id
from amplifier_api_server.tenants.lifecycle import TenantStatus
from amplifier_api_server.tenants.models import ApiKey, Member, Tenant
from amplifier_api_server.tenants.permissions import Role
from amplifier_api_server.tenants.repository import keys, members, tenants

log = structlog.get_logger(__name__)

FILE_NAME = "keys.json"
_FIRST_TENANT = "First tenant"
_FIRST_TIER = "enterprise"


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """Keys as text. `repr` shows none of them."""

    tenant_key: str
    operator_key: str
    tenant_id: str

    def __repr__(self) -> str:
        return f"FirstKeys(tenant_id={self.tenant_id!r})"


async def ensure_first_keys(database: Database, data_dir: Path, pepper: bytes, clock: Clock) -> FirstKeys:
    """An admin key of the first tenant and an operator key, both of which work. Idempotent; commits."""
    path = data_dir / FILE_NAME
    kept = read(data_dir)
    async with database.write() as db:
        now = clock.now()
        tenant = await _first_tenant(db, kept, now)
        tenant_key = await _tenant_key(db, tenant, kept.tenant_key if kept else "", pepper, now)
        operator_key = await _operator_key(db, kept.operator_key if kept else "", pepper, now)
        first = FirstKeys(tenant_key, operator_key, tenant.id)
        if first != kept:
            _write(path, first)
    return first


async def _first_tenant(db: AsyncSession, kept: FirstKeys | None, now: datetime) -> Tenant:
    """The one the file names, else the oldest; a new one where it was deleted or never made."""
    found = await tenants.find(db, TenantId(kept.tenant_id)) if kept else await tenants.oldest_of_all_tenants(db)
    if found is not None and found.status != TenantStatus.DELETED.value:
        return found
    is_lost = kept is not None and await tenants.oldest_of_all_tenants(db) is None
    tenant = Tenant(
        web={},
        id=kept.tenant_id if is_lost and kept else new_tenant_id(),
        name=_FIRST_TENANT,
        tier=_FIRST_TIER,
        status=TenantStatus.ACTIVE.value,
        limits={},
        created_at=now,
        updated_at=now,
    )
    await tenants.add(db, TenantId(tenant.id), tenant)
    log.info("the first tenant was made", tenant_id=tenant.id)
    return tenant


async def _tenant_key(db: AsyncSession, tenant: Tenant, kept: str, pepper: bytes, now: datetime) -> str:
    tenant_id = TenantId(tenant.id)
    text, is_there = await _usable(db, kept, pepper, now, tenant_id)
    if is_there:
        return text
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name="admin",
        role=Role.ADMIN.value,
        kind="service",
        limits={},
        created_at=now,
    )
    await members.add(db, tenant_id, member)
    row = _row(text, pepper, now, Role.ADMIN)
    row.tenant_id, row.member_id = tenant_id, member.id
    await keys.add(db, tenant_id, row)
    log.info("a first admin key was made", tenant_id=tenant_id, key_id=row.id)
    return text


async def _operator_key(db: AsyncSession, kept: str, pepper: bytes, now: datetime) -> str:
    text, is_there = await _usable(db, kept, pepper, now, None)
    if not is_there:
        row = _row(text, pepper, now, Role.OPERATOR)
        await keys.add_of_operator(db, row)
        log.info("a first operator key was made", key_id=row.id)
    return text


async def _usable(
    db: AsyncSession, kept: str, pepper: bytes, now: datetime, tenant_id: TenantId | None
) -> tuple[str, bool]:
    """A key's text, and whether its row is there: the kept key where it works or has no row yet, else a new one."""
    if not api_keys.is_well_formed(kept):
        return api_keys.mint().text, False
    digest = api_keys.digest(pepper, kept)
    found = (await keys.find_by_digest(db, [digest])).get(digest)
    if found is None:
        return kept, False
    role = Role.OPERATOR if tenant_id is None else Role.ADMIN
    is_over = found.revoked_at is not None or (found.expires_at is not None and found.expires_at <= now)
    if is_over or found.tenant_id != tenant_id or found.role != role.value:
        return api_keys.mint().text, False
    return kept, True


def _row(text: str, pepper: bytes, now: datetime, role: Role) -> ApiKey:
    return ApiKey(
        id=KeyId(new_key_id()),
        name="first " + role.value,
        role=role.value,
        digest=api_keys.digest(pepper, text),
        hint=api_keys.hint_of(text),
        limits={},
        created_at=now,
        created_by="bootstrap",
    )


def read(data_dir: Path) -> FirstKeys | None:
    """What the file holds; None when it is lost or spoiled, which new keys repair."""
    path = data_dir / FILE_NAME
    try:
        found: FirstKeys | None = FirstKeys(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or not all(isinstance(one, str) for one in astuple(found)):
        log.warning("the file of first keys can't be read; new keys are made", path=str(path))
        return None
    return found


def _write(path: Path, first: FirstKeys) -> None:
    """Whole or not at all, and readable by its owner alone from the first byte on."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(first), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
