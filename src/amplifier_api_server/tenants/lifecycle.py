"""States, and the moves between them that are legal. `docs/lifecycle.md` tells the same in prose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar


class TenantStatus(StrEnum):
    ACTIVE = "active"
    SUSPENDED = "suspended"  # its keys answer 403, its sandboxes stop, its data stays
    DELETED = "deleted"


class MemberStatus(StrEnum):
    ACTIVE = "active"
    DISABLED = "disabled"  # its keys and logins are refused; an admin can enable it again
    REMOVED = "removed"  # for good; what it made and used stays


class InvitationStatus(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REVOKED = "revoked"


class SessionStatus(StrEnum):
    ACTIVE = "active"  # has a runtime, or can have one at once
    SUSPENDED = "suspended"  # durable, no runtime; the next call wakes it
    CLOSED = "closed"
    FAILED = "failed"  # says why; can be retried or deleted


class TurnStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RequestStatus(StrEnum):
    """Of a request with an Idempotency-Key."""

    RUNNING = "running"  # of an execution: as long as the key is kept, since its turn tells the rest
    ANSWERED = "answered"
    LOST = "lost"  # it was, or may have been, done; how it was answered is not known


class CallbackStatus(StrEnum):
    WAITING = "waiting"  # for its turn's end
    DUE = "due"
    DELIVERED = "delivered"
    FAILED = "failed"  # given up: says why


class InstallationStatus(StrEnum):
    RUNNING = "running"
    INSTALLED = "installed"
    FAILED = "failed"  # says why; nothing is left of it


class RuntimeStatus(StrEnum):
    STARTING = "starting"
    WARM = "warm"  # runs, belongs to nobody
    CLAIMED = "claimed"  # belongs to a tenant, for good
    DRAINING = "draining"  # takes no new session; ends when its turns have
    UNREACHABLE = "unreachable"  # observed, but does not answer
    GONE = "gone"


_SESSION_MOVES: dict[SessionStatus, frozenset[SessionStatus]] = {
    SessionStatus.ACTIVE: frozenset({SessionStatus.SUSPENDED, SessionStatus.CLOSED, SessionStatus.FAILED}),
    SessionStatus.SUSPENDED: frozenset({SessionStatus.ACTIVE, SessionStatus.CLOSED, SessionStatus.FAILED}),
    SessionStatus.FAILED: frozenset({SessionStatus.ACTIVE, SessionStatus.CLOSED}),
    SessionStatus.CLOSED: frozenset(),
}

_RUNTIME_MOVES: dict[RuntimeStatus, frozenset[RuntimeStatus]] = {
    RuntimeStatus.STARTING: frozenset({RuntimeStatus.WARM, RuntimeStatus.GONE}),
    RuntimeStatus.WARM: frozenset({RuntimeStatus.CLAIMED, RuntimeStatus.DRAINING, RuntimeStatus.GONE}),
    RuntimeStatus.CLAIMED: frozenset({RuntimeStatus.DRAINING, RuntimeStatus.UNREACHABLE, RuntimeStatus.GONE}),
    RuntimeStatus.UNREACHABLE: frozenset({RuntimeStatus.CLAIMED, RuntimeStatus.DRAINING, RuntimeStatus.GONE}),
    RuntimeStatus.DRAINING: frozenset({RuntimeStatus.GONE}),
    RuntimeStatus.GONE: frozenset(),
}


def require_session_move(expected: Iterable[SessionStatus], new: SessionStatus) -> None:
    """Raise ValueError where a session may not go to `new` from each of `expected`: a mistake in code. Staying is legal."""
    _require(_SESSION_MOVES, expected, new)


def require_runtime_move(expected: Iterable[RuntimeStatus], new: RuntimeStatus) -> None:
    """The same for a runtime."""
    _require(_RUNTIME_MOVES, expected, new)


_Status = TypeVar("_Status", SessionStatus, RuntimeStatus)


def _require(moves: Mapping[_Status, frozenset[_Status]], expected: Iterable[_Status], new: _Status) -> None:
    illegal = [old.value for old in expected if new != old and new not in moves[old]]
    if illegal:
        raise ValueError(f"nothing goes from {', '.join(illegal)} to {new.value}")
