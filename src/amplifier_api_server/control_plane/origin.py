"""Where the work at hand came from: which door, which address, which request.

For the audit log, and for what is counted by address. Never for a permission: an address proves nothing about who is calling.
Set once by each door for each request or message, and read where a change is recorded or an attempt counted: it would
otherwise pass through every service between the two. So is whose work it is, for what is shared out between tenants.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from typing import Final, Literal

from amplifier_api_server.control_plane.client_addresses import network_of

Door = Literal["rest", "graphql", "websocket", "cli", ""]

_MAX_USER_AGENT_CHARS = 200
# The characters of a token (RFC 9110, 5.6.2) and some that ids are made with; never the `~` of `record_id`.
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:=+/@-]{1,128}")
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Origin:
    """`address` is the client's: the connection's other end, or whom a trusted proxy names.

    `http_request_id` is what the answer's header `X-Request-Id` has. A client that chooses it may choose the same one twice:
    `record_id` is what no two requests share.
    """

    door: Door = ""
    address: str = ""
    user_agent: str = ""
    http_request_id: str = ""
    trace_id: str = ""  # of the client's `traceparent` (W3C Trace Context)
    record_id: str = ""

    @property
    def network(self) -> str:
        """As whom the address is counted."""
        return network_of(self.address)

    @property
    def ids(self) -> dict[str, str]:
        """What lines of the log about this request have in common."""
        ids = {"http_request_id": self.http_request_id}
        return ids | {"trace_id": self.trace_id} if self.trace_id else ids

    def of_message(self, http_request_id: str) -> Origin:
        """The same, for one of the messages of a connection."""
        record_id = f"{http_request_id}{_APART}{new_http_request_id()}"
        return replace(self, http_request_id=http_request_id, record_id=record_id)


_APART: Final = "~"
_caller: ContextVar[str] = ContextVar("caller", default="")
_NOWHERE = Origin()
_here: ContextVar[Origin] = ContextVar("origin", default=_NOWHERE)


def set_origin(origin: Origin) -> Token[Origin]:
    """From here on, in this task and those that it starts."""
    return _here.set(origin)


def reset_origin(token: Token[Origin]) -> None:
    """Back to what was before."""
    _here.reset(token)


def current_origin() -> Origin:
    return _here.get()


def set_caller(tenant_id: str) -> None:
    """Whose the work at hand is, from here on, in this task and those that it starts."""
    _caller.set(tenant_id)


def current_caller() -> str:
    """As whom the work at hand is counted: the tenant, the network before that is known, "" for the server's own work."""
    return _caller.get() or _here.get().network


def new_http_request_id() -> str:
    return os.urandom(12).hex()


def origin_of(door: Door, address: str, headers: Iterable[tuple[bytes, bytes]]) -> Origin:
    """Of a request: its ids are those that it came with, where they can be used."""
    found = {name: value for name, value in headers if name in {b"user-agent", b"x-request-id", b"traceparent"}}
    agent = cut_user_agent(found.get(b"user-agent", b"").decode("latin-1"))
    trace = _TRACEPARENT.fullmatch(found.get(b"traceparent", b""))
    trace_id = trace[1].decode() if trace is not None else ""
    fresh, given = new_http_request_id(), found.get(b"x-request-id", b"")
    if _REQUEST_ID.fullmatch(given):
        return Origin(door, address, agent, given.decode(), trace_id, f"{given.decode()}{_APART}{fresh}")
    return Origin(door, address, agent, fresh, trace_id, fresh)


def http_request_id_in(record_id: str) -> str:
    """The `http_request_id` of the request that has this `record_id`."""
    return record_id.partition(_APART)[0]


def cut_user_agent(header: str) -> str:
    """As much of a User-Agent header as is kept, without what would break a line."""
    return "".join(one for one in header[:_MAX_USER_AGENT_CHARS] if one.isprintable())
