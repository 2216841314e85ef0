"""What a row is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

LS, PWD = '{"command":"ls"}', '{"command":"pwd"}'
SMILE = "\U0001f600"
TWO = [("bash", {"command": "ls"}), ("bash", {"command": "pwd"})]


@dataclass(frozen=True)
class Case:
    name: str
    dialect: Literal["chat", "messages", "responses"]
    sent: bytes
    text: str = ""
    calls: Sequence[tuple[str, Any]] = ()  # names and arguments, in their order
    ids: Sequence[str] | None = None
    finish: str = "stop"
    usage: dict[str, int] = field(default_factory=dict)  # by core's names
    thinking: str = ""
    fails: str | None = None  # the code of the failure, "" where it has none
    is_error: bool = False  # the provider says itself that it failed: the gateway passes that on
    is_asked_again: bool | None = None  # by the gateway; None: where it is no answer at all
    is_stream: bool = True

    @property
    def tries(self) -> int:
        """How often a gateway that tries once more asks for it."""
        is_none = self.fails == "" and not self.is_error
        return 1 + (is_none if self.is_asked_again is None else self.is_asked_again)


def events(*told: Any) -> bytes:
    """Each as an event's data: bytes as they are, all else as JSON."""
    return b"".join(b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in told)
