"""Which operation each message asks for: the table that the connection reads, and the matrix test.

Invariant (a test holds it): every message of a client is in exactly one of these; every operation that is not REST's alone
can be asked for by some message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from amplifier_api_server.control_plane.operations import ONLY_REST, OPERATIONS


@dataclass(frozen=True, slots=True)
class Translated:
    """A message that is one request: where its members go there, and what the answer is called.

    What is neither of the path nor of the query is the body. The path's members are in the answer too.
    """

    operation: str
    answer: str
    path: tuple[str, ...] = ()
    query: tuple[str, ...] = ()


TRANSLATED: Final[Mapping[str, Translated]] = {
    "session.create": Translated("createSession", "session.created"),
    "session.get": Translated("getSession", "session", path=("session_id",)),
    "session.list": Translated(
        "listSessions", "sessions", query=("limit", "cursor", "order", "status", "profile", "member_id")
    ),
    "session.update": Translated("updateSession", "session.updated", path=("session_id",)),
    "session.fork": Translated("forkSession", "session.forked", path=("session_id",)),
    "session.close": Translated("closeSession", "session.closed", path=("session_id",)),
    "cancel": Translated("cancelExecution", "cancelled", path=("session_id", "request_id")),
    "approvals.list": Translated("listApprovals", "approvals", path=("session_id", "request_id")),
    "approval.respond": Translated(
        "answerApproval", "approval.responded", path=("session_id", "request_id", "approval_id")
    ),
}

# With `background`: nothing follows, so it is one request as well.
IN_BACKGROUND: Final[Mapping[str, Translated]] = {
    "execute": Translated("execute", "execution.started", path=("session_id",)),
    "execute.once": Translated("executeOnce", "execution.started"),
}

# Answered with a stream of events on the connection.
FOLLOWED: Final[Mapping[str, str]] = {
    "execute": "execute",
    "execute.once": "executeOnce",
    "attach": "streamExecution",
    "events.subscribe": "streamEvents",
}

# About the connection alone, so there is nothing to be allowed: who is there, whether it works, what to send no more of.
UNBOUND: Final = frozenset({"auth", "ping", "detach", "events.unsubscribe"})

ANY: Final = "call"  # names its operation
CALLABLE: Final = frozenset(OPERATIONS) - frozenset(ONLY_REST) - frozenset(FOLLOWED.values())

# Message -> operation, for whoever wants to read it in one place; None for those of the connection.
OPERATION_OF: Final[Mapping[str, str | None]] = (
    {name: one.operation for name, one in TRANSLATED.items()} | dict(FOLLOWED) | dict.fromkeys(UNBOUND)
)
