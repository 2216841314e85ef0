"""Where the work at hand came from: which door, which address, which request.

For the audit log, and for what is counted by address. Never for a permission: an address proves nothing about who is calling.
Set once by each door for each request or message, and read where a change is recorded or an attempt counted: it would
otherwise pass through every service between the two.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Literal

from amplifier_api_server.control_plane.client_addresses import network_of

Door = Literal["rest", "graphql", "websocket", "cli", ""]

_MAX_USER_AGENT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """`address` is the client's: the connection's other end, or whom a trusted proxy names."""

    door: Door = ""
    address: str = ""
    user_agent: str = ""
    request_id: str = ""

    @property
    def network(self) -> str:
        """As whom the address is counted."""
        return network_of(self.address)


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


def cut_user_agent(header: str) -> str:
    """As much of a User-Agent header as is kept, without what would break a line."""
    return "".join(one for one in header[:_MAX_USER_AGENT_CHARS] if one.isprintable())
