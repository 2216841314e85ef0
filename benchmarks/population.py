"""Tenants, members, keys and sessions in bulk, written as rows: what a server has that has been used for a while."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import insert

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.tenants import api_keys
from amplifier_api_server.tenants.ids import (
    ALPHABET,
    KeyId,
    MemberId,
    SessionId,
    TenantId,
    new_key_id,
    new_member_id,
    new_tenant_id,
)
from amplifier_api_server.tenants.models import ApiKey, Member, Session, Tenant

_ROWS_AT_ONCE = 500
_CONTEXT = {"repository": "https://example.com/team/project", "note": "x" * 200}


@dataclass(frozen=True, slots=True)
class Citizen:
    """A tenant's only member, with its key."""

    tenant_id: TenantId
    member_id: MemberId
    key_id: KeyId
    key: str


async def add_tenants(database: Database, pepper: bytes, count: int, now: datetime) -> list[Citizen]:
    """`count` tenants of the enterprise tier, each with an admin and a key. Commits."""
    made = [Citizen(new_tenant_id(), new_member_id(), new_key_id(), api_keys.mint().text) for _ in range(count)]
    for some in _batches(made):
        tenants: list[dict[str, Any]] = []
        members: list[dict[str, Any]] = []
        keys: list[dict[str, Any]] = []
        for one in some:
            same = {"limits": {}, "created_at": now}
            tenant = {"id": one.tenant_id, "name": "bench", "tier": "enterprise", "status": "active", "web": {}}
            tenants.append(tenant | {"updated_at": now} | same)
            members.append({"id": one.member_id, "tenant_id": one.tenant_id, "name": "admin", "role": "admin"} | same)
            keys.append(
                {
                    "id": one.key_id,
                    "tenant_id": one.tenant_id,
                    "member_id": one.member_id,
                    "name": "bench",
                    "role": "admin",
                    "digest": api_keys.digest(pepper, one.key),
                    "hint": api_keys.hint_of(one.key),
                }
                | same
            )
        async with database.write() as db:
            await db.execute(insert(Tenant), tenants)
            await db.execute(insert(Member), members)
            await db.execute(insert(ApiKey), keys)
    return made


async def add_suspended_sessions(database: Database, owners: Sequence[Citizen], count: int, now: datetime) -> None:
    """`count` sessions that are in no runtime, dealt out to `owners` in turn. Commits."""
    rng = random.Random(count)
    numbers = range(count)
    for some in _batches(list(numbers)):
        rows = []
        for number in some:
            owner = owners[number % len(owners)]
            rows.append(
                {
                    "id": SessionId("sess_" + "".join(rng.choices(ALPHABET, k=22))),
                    "tenant_id": owner.tenant_id,
                    "member_id": owner.member_id,
                    "key_id": owner.key_id,
                    "profile": "foundation:base",
                    "context": _CONTEXT,
                    "plan": {"session": {"loop": "loop-streaming"}, "tools": ["bash", "filesystem", "todo"]},
                    "model": "bench",
                    "collections": [],
                    "collections_key": "",
                    "state": {},
                    "status": "suspended",
                    "message_count": 0,
                    "turn_count": 0,
                    "created_at": now,
                    "last_active_at": now,
                }
            )
        async with database.write() as db:
            await db.execute(insert(Session), rows)


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, _ROWS_AT_ONCE)):
        yield some
