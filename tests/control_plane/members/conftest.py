from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.control_plane.accounts.doors import Doors, opened
from tests.tenants.embedded import Embedded, embedded

__all__ = ["embedded"]


@pytest.fixture
async def doors(embedded: Embedded) -> AsyncIterator[Doors]:
    async with opened(embedded) as found:
        yield found
