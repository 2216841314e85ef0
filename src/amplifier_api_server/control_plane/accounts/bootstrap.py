"""The first keys of an embedded installation, made on an empty database and kept where its operator can read them again.

Owns `keys.json` in the data folder (0600): the only place that holds keys as text, and only in embedded mode.
Invariants: a database that has, or ever had, a tenant or a key gets no other ones from here, whatever became of the file:
whoever removes or spoils a file must not be given an operator's key for it. The file is written before the rows are
committed, so that a kill in between leaves keys that never worked, and the next start makes others.
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

from amplifier_api_server.control_plane.audit.recording import differences, record
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


async def ensure_first_keys(database: Database, data_dir: Path, pepper: bytes, clock: Clock) -> FirstKeys | None:
    """Where the database is empty, make a tenant with an admin key, and an operator key; None where it is not. Commits.

    Raises OSError where the file can't be written; nothing is made then.
    """
    async with database.write() as db:
        if await tenants.oldest_of_all_tenants(db) is not None or await keys.is_any_of_all_tenants(db):
            return None
        tenant_key, operator_key = api_keys.mint().text, api_keys.mint().text
        tenant_id = await _add_tenant(db, clock)
        await _add_admin(db, clock, tenant_id, _row(tenant_key, pepper, clock.now(), Role.ADMIN))
        operator = _row(operator_key, pepper, clock.now(), Role.OPERATOR)
        await keys.add_of_operator(db, operator)
        await _record(db, clock, "createKey", TenantId(""), operator.id, {"name": operator.name, "role": operator.role})
        first = FirstKeys(tenant_key, operator_key, tenant_id)
        _write(data_dir / FILE_NAME, first)
    log.info("the first tenant and its keys were made", tenant_id=tenant_id)
    return first


async def still_good(database: Database, pepper: bytes, kept: FirstKeys, clock: Clock) -> FirstKeys:
    """The same, with no text of those that work no more."""
    now = clock.now()

    async def of(text: str, role: Role) -> str:
        found = (await keys.find_by_digest(db, [digest := api_keys.digest(pepper, text)])).get(digest)
        is_good = found is not None and found.revoked_at is None and found.role == role.value
        return text if is_good and found is not None and (found.expires_at is None or found.expires_at > now) else ""

    async with database.read() as db:
        return FirstKeys(
            await of(kept.tenant_key, Role.ADMIN), await of(kept.operator_key, Role.OPERATOR), kept.tenant_id
        )


async def _add_tenant(db: AsyncSession, clock: Clock) -> TenantId:
    now = clock.now()
    tenant = Tenant(
        web={},
        id=new_tenant_id(),
        name=_FIRST_TENANT,
        tier=_FIRST_TIER,
        status=TenantStatus.ACTIVE.value,
        limits={},
        created_at=now,
        updated_at=now,
    )
    tenant_id = TenantId(tenant.id)
    await tenants.add(db, tenant_id, tenant)
    await _record(db, clock, "createTenant", tenant_id, tenant_id, {"name": tenant.name, "tier": tenant.tier})
    return tenant_id


async def _add_admin(db: AsyncSession, clock: Clock, tenant_id: TenantId, key: ApiKey) -> None:
    member = Member(
        id=new_member_id(),
        tenant_id=tenant_id,
        name="admin",
        role=Role.ADMIN.value,
        kind="service",
        limits={},
        created_at=clock.now(),
    )
    await members.add(db, tenant_id, member)
    key.tenant_id, key.member_id = tenant_id, member.id
    await keys.add(db, tenant_id, key)
    given = {"name": key.name, "role": key.role, "member_id": member.id}
    await _record(db, clock, "createKey", tenant_id, key.id, given)


async def _record(
    db: AsyncSession, clock: Clock, action: str, tenant_id: TenantId, target: str, given: dict[str, str]
) -> None:
    await record(db, clock, "bootstrap", action, tenant_id=tenant_id, target=target, changes=differences({}, given))


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
    """What the file holds; None when it is lost or spoiled."""
    path = data_dir / FILE_NAME
    try:
        found: FirstKeys | None = FirstKeys(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        found = None
    if found is None or not all(isinstance(one, str) for one in astuple(found)):
        log.warning("the file of first keys can't be read", path=str(path))
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
