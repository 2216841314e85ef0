"""The errors of the domain, as a tree. Each has a stable `code`; `control_plane/errors.py` maps them to statuses.

DomainError
+-- Invalid                 a value is wrong: says which and what it should be
|   +-- Malformed           of the request itself: no work began for it
+-- NotFound                it does not exist, or it is another tenant's, which is the same
+-- Unauthenticated         nobody we know
+-- Forbidden               we know you, and you may not
+-- Conflict                not in this state: a turn runs, a name is taken
|   +-- Closed              the session is closed for good
|   +-- Unreadable          what is stored of it can't be read
+-- Gone                    it was there, and is kept no longer
+-- Refused                 a limit says no (429): which one, and when to come back
|   +-- QuotaExceeded       the token budget is spent
+-- TooLarge                more bytes than allowed
+-- InsufficientStorage     no room to keep it: on the machine's disk, or in the tenant's share of it
+-- Unavailable             not now: no runtime, no room, shutting down
+-- RuntimeLost             the sandbox went away in mid-turn
+-- TurnFailed              the turn ended in an error of its own: the model's, a module's
+-- TurnCancelled           somebody cancelled it
"""

from __future__ import annotations

from typing import Any, ClassVar


class DomainError(Exception):
    """A failure with a stable code. `detail` is for the caller to read: what was wrong, with the value, and what to do."""

    code: ClassVar[str] = "error"

    def __init__(
        self, detail: str, *, code: str | None = None, retry_after_seconds: float | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.stable_code = code or self.code
        self.retry_after_seconds = retry_after_seconds
        self.extra = extra  # further members of the problem, JSON values
        self.standings: tuple[Any, ...] = ()  # how limits stand that were asked or taken before, for headers


class Invalid(DomainError):
    """`errors` in `extra` is a list of {field, message}."""

    code = "invalid_request"


class Malformed(Invalid):
    """What was sent does not read as what was asked for."""


class NotFound(DomainError):
    """`code` says what kind of thing is not there: `session_not_found`."""

    def __init__(self, detail: str, *, code: str, **extra: Any) -> None:
        super().__init__(detail, code=code, **extra)


class Unauthenticated(DomainError):
    code = "unauthenticated"


class Forbidden(DomainError):
    code = "forbidden"


class Conflict(DomainError):
    code = "conflict"


class Closed(Conflict):
    code = "session_closed"


class Unreadable(Conflict):
    code = "record_unreadable"


class Gone(DomainError):
    code = "gone"


class Refused(DomainError):
    code = "rate_limited"


class QuotaExceeded(Refused):
    code = "quota_exceeded"


class TooLarge(DomainError):
    code = "too_large"


class InsufficientStorage(DomainError):
    code = "disk_full"


class Unavailable(DomainError):
    code = "unavailable"


class RuntimeLost(DomainError):
    code = "runtime_lost"


class TurnFailed(DomainError):
    code = "turn_failed"


class TurnCancelled(DomainError):
    code = "turn_cancelled"
