"""What fields of many sessions ask for, read together: as many statements for a hundred sessions as for one.

A loader lives as long as its document. Invariant: what one field reads of all its sessions is bounded by
`graphql.max_transcripts`, and is measured before it is read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from strawberry.dataloader import DataLoader

from amplifier_api_server.control_plane.db import Database
from amplifier_api_server.control_plane.settings import Settings
from amplifier_api_server.tenants.errors import DomainError, TooLarge
from amplifier_api_server.tenants.ids import TenantId
from amplifier_api_server.tenants.models import Message, Turn
from amplifier_api_server.tenants.repository import many_sessions
from amplifier_api_server.tenants.repository.many_sessions import Slice

NEWEST_MESSAGES = 1000  # of a session, where no page is asked for


@dataclass(frozen=True, slots=True)
class Messages:
    """`count` messages of a session: those after number `after`; or the newest, with None."""

    session_id: str
    count: int
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """`count` executions of a session, the newest that are older than `before`."""

    session_id: str
    count: int
    before: tuple[Any, ...] | None = None


Asked = TypeVar("Asked", Messages, Turns)


class Loaders:
    """Those of one document."""

    def __init__(self, database: Database, tenant_id: TenantId, settings: Settings) -> None:
        self._database = database
        self._tenant_id = tenant_id
        self._max_bytes = settings.graphql.max_transcripts
        self.messages: DataLoader[Messages, list[Message]] = DataLoader(self._load_messages)
        self.turns: DataLoader[Turns, list[Turn]] = DataLoader(self._load_turns)

    async def _load_messages(self, asked: list[Messages]) -> list[list[Message] | BaseException]:
        found: dict[Messages, list[Message] | DomainError] = {}
        for same in _alike(asked, lambda one: (one.count, one.after)):
            ids = [one.session_id for one in same]
            cut = Slice(tuple(ids), same[0].count)
            async with self._database.read() as db:
                weight = await many_sessions.weight_of_messages(db, self._tenant_id, cut, after=same[0].after)
                if refused := self._refusal(weight):
                    found |= dict.fromkeys(same, refused)
                    continue
                rows = await many_sessions.messages(db, self._tenant_id, cut, after=same[0].after)
            by_session = _by_session(rows)
            found |= {one: by_session[one.session_id] for one in same}
        return [found[one] for one in asked]

    async def _load_turns(self, asked: list[Turns]) -> list[list[Turn] | BaseException]:
        found: dict[Turns, list[Turn] | DomainError] = {}
        for same in _alike(asked, lambda one: (one.count, one.before)):
            cut = Slice(tuple(one.session_id for one in same), same[0].count)
            async with self._database.read() as db:
                weight = await many_sessions.weight_of_turns(db, self._tenant_id, cut, before=same[0].before)
                if refused := self._refusal(weight):
                    found |= dict.fromkeys(same, refused)
                    continue
                rows = await many_sessions.turns(db, self._tenant_id, cut, before=same[0].before)
            by_session = _by_session(rows)
            found |= {one: by_session[one.session_id] for one in same}
        return [found[one] for one in asked]

    def _refusal(self, weight_bytes: int) -> DomainError | None:
        if weight_bytes <= self._max_bytes:
            return None
        return TooLarge(
            f"this field would read {weight_bytes} bytes of these sessions; at most {self._max_bytes} are read at once: "
            "ask for fewer sessions, or for shorter pages",
            limit_bytes=self._max_bytes,
        )


def _alike(asked: Sequence[Asked], key: Callable[[Asked], object]) -> list[list[Asked]]:
    """What can be read by one statement: the same page of different sessions. As many groups as a document has fields."""
    groups: defaultdict[object, list[Asked]] = defaultdict(list)
    for one in asked:
        groups[key(one)].append(one)
    return list(groups.values())


Row = TypeVar("Row", Message, Turn)


def _by_session(rows: Sequence[Row]) -> defaultdict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.session_id].append(row)
    return found
