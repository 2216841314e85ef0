"""Turns that run now, as this process knows them. The rows are the record; this is who waits for what.

Invariant: a turn is in here from before its row says running until after its row says how it ended, and `ended` is set
exactly once, with what the row says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from amplifier_api_server.control_plane.auth.principal import Principal
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.router.pool import Answer
from amplifier_api_server.runtime.protocol import ApprovalEvent, TurnResult
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.ids import MemberId, RuntimeId, SessionId, TenantId, TurnId


@dataclass(slots=True, eq=False)
class LiveTurn:
    """One running turn."""

    id: TurnId
    tenant_id: TenantId
    session_id: SessionId
    member_id: MemberId
    key_id: str
    principal: Principal | None = None  # who began it; None for a turn of an earlier process
    runtime_id: RuntimeId | None = None
    address: Address | None = None
    last_event: int = 0  # the highest event number that any client was sent
    why_ended: DomainError | None = None  # said by whoever had it cancelled, where that was not its caller
    is_followed: bool = False  # its stream is read here, though no client reads it
    is_sent: bool = False  # its runtime may have begun it: it can't be begun anywhere else
    closes_session: bool = False  # the session was made for it, and closes with it
    answers: list[Answer] = field(default_factory=list)  # of its runtime, that are or were read
    wants_callback: bool = False  # somebody is to be told when it has ended
    # Approvals that its sandbox has told of, by id, each with when it expires.
    waiting: dict[str, tuple[datetime, ApprovalEvent]] = field(default_factory=dict)
    approvals_told: int = 0  # how often its sandbox has told of approvals
    started_at: datetime | None = None  # as its row has it; None for a turn of an earlier process
    began_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())  # the loop's clock, seconds
    settling: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Future[TurnResult] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    # Set where its end is known and could not be recorded yet: whoever waits is told this instead, and it ends when it can.
    unrecorded: asyncio.Future[DomainError] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def is_read(self) -> bool:
        """Whether somebody still reads what its runtime tells of it."""
        return not all(one.is_closed for one in self.answers)

    def waits(self, now: datetime) -> list[ApprovalEvent]:
        """What it waits for a person's word on."""
        return [event for expires_at, event in self.waiting.values() if expires_at > now]


class LiveTurns:
    """The turns that run now, by id, by session and by runtime."""

    def __init__(self) -> None:
        self._by_id: dict[TurnId, LiveTurn] = {}
        self._by_session: dict[SessionId, LiveTurn] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, turn: LiveTurn) -> None:
        self._by_id[turn.id] = turn
        self._by_session[turn.session_id] = turn

    def remove(self, turn: LiveTurn) -> None:
        self._by_id.pop(turn.id, None)
        if self._by_session.get(turn.session_id) is turn:
            del self._by_session[turn.session_id]

    def get(self, tenant_id: TenantId, session_id: SessionId, turn_id: TurnId) -> LiveTurn | None:
        """The turn, if it runs and is this tenant's and this session's."""
        turn = self._by_id.get(turn_id)
        return turn if turn is not None and (turn.tenant_id, turn.session_id) == (tenant_id, session_id) else None

    def of_session(self, session_id: SessionId) -> LiveTurn | None:
        return self._by_session.get(session_id)

    def of_runtime(self, runtime_id: RuntimeId) -> list[LiveTurn]:
        return [turn for turn in self._by_id.values() if turn.runtime_id == runtime_id]

    def of_tenant(self, tenant_id: TenantId) -> list[LiveTurn]:
        return [turn for turn in self._by_id.values() if turn.tenant_id == tenant_id]

    def all(self) -> list[LiveTurn]:
        return list(self._by_id.values())
