"""Numbers of rows that readers go on after: in the order of writing, and silent about how many rows other tenants have.

A number is made of the time, which the row has anyway, and of chance. So what lies between two numbers of a tenant tells it
nothing of what others wrote meanwhile. Invariant: a new number is higher than any before it, also where the clock was set
back in between.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Table, bindparam, case, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

_CHANCE_BITS: Final = 16  # after the milliseconds since 1970: together 18 digits until the year 2453


class NumberedRows:
    """Adds rows to a table. The statement is made once, and nobody asks for the number."""

    def __init__(self, table: Table) -> None:
        last = select(func.coalesce(func.max(table.c.id), 0)).scalar_subquery()
        by_time, chance = bindparam("by_time", type_=BigInteger), bindparam("chance", type_=BigInteger)
        number = case((last >= by_time, last + 1 + chance), else_=by_time + chance)
        others = {one.name: bindparam(f"{one.name}_", type_=one.type) for one in table.c if one.name != "id"}
        self._add = insert(table).values(id=number, **others).inline()

    async def add(self, db: AsyncSession, now: datetime, values: Mapping[str, Any]) -> None:
        """One more. `values` are those of all columns but the number, by their names."""
        given = {f"{name}_": value for name, value in values.items()}
        given["by_time"] = int(now.timestamp() * 1000) << _CHANCE_BITS
        given["chance"] = secrets.randbits(_CHANCE_BITS)
        await (await db.connection()).execute(self._add, given)
