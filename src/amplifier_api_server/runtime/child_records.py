"""The child sessions of one session that can be resumed: as JSON, between their turns.

Owns what is kept of them, and its bounds. Invariant: records are replaced, never changed, so that a state that was told
stays as it was told; what is told fits, because the oldest are dropped first, with a log line.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import from_json

from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.spawning import Recipe, recipe_of
from amplifier_api_server.runtime.transcript import Messages

log = logging.getLogger(__name__)

MAX_CHILDREN = 100  # that are kept of one session
MAX_CHILD_BYTES = 1024 * 1024  # of one child's transcript and state
MAX_CHILDREN_BYTES = 3 * 1024 * 1024  # of all of them: a checkpoint's state has 4 MiB for everything


@dataclass(frozen=True, slots=True)
class Record:
    """One child after its last completed turn."""

    session_id: str
    parent_id: str
    recipes: tuple[Recipe, ...]  # from the session at the root down to it
    self_depth: int  # how many generations in a row delegated to themselves
    turns: int
    transcript: Messages
    state: dict[str, Any]

    @property
    def agent(self) -> str:
        return self.recipes[-1].name

    @property
    def depth(self) -> int:
        return len(self.recipes)

    def as_json(self) -> dict[str, Any]:
        return {
            "parent_id": self.parent_id,
            "recipes": [recipe.as_json() for recipe in self.recipes],
            "self_depth": self.self_depth,
            "turns": self.turns,
            "transcript": self.transcript,
            "state": self.state,
        }


class Records:
    """By id, the one that ran last at the end."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Record, dict[str, Any], int]] = {}
        self._bytes = 0

    def get(self, session_id: str) -> Record | None:
        held = self._kept.get(session_id)
        return held[0] if held is not None else None

    def ids(self) -> list[str]:
        return list(self._kept)

    def keep(self, record: Record) -> bool:
        """Keep it as the newest. False when it is too large; then nothing is kept of it."""
        self._drop(record.session_id)
        text = encoded(record.as_json())
        size = len(text)
        if size > MAX_CHILD_BYTES:
            log.warning("a child session of %d bytes is not kept: it can't be resumed", size)
            return False
        told = from_json(text)
        record = replace(record, transcript=told["transcript"], state=told["state"])  # one copy in memory, not two
        self._kept[record.session_id] = (record, told, size)
        self._bytes += size
        while len(self._kept) > MAX_CHILDREN or self._bytes > MAX_CHILDREN_BYTES:
            oldest = next(iter(self._kept))
            log.warning("a child session is dropped, the oldest of too many: it can't be resumed any more")
            self._drop(oldest)
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {session_id: told for session_id, (_, told, _) in self._kept.items()}

    def restore(self, state: Any) -> None:
        """As `state` told it. What can't be read is left out with a log line: the session goes on without it."""
        self._kept.clear()
        self._bytes = 0
        for session_id, told in state.items() if isinstance(state, Mapping) else ():
            try:
                record = Record(
                    session_id=str(session_id),
                    parent_id=str(told["parent_id"]),
                    recipes=tuple(recipe_of(one) for one in told["recipes"]),
                    self_depth=int(told["self_depth"]),
                    turns=int(told["turns"]),
                    transcript=[dict(message) for message in told["transcript"]],
                    state=dict(told["state"]),
                )
                kept = bool(record.recipes) and self.keep(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                log.warning("a child session can't be read back: %s", type(error).__name__)
            else:
                if not kept:
                    log.warning("a child session was not taken back")

    def _drop(self, session_id: str) -> None:
        held = self._kept.pop(session_id, None)
        if held is not None:
            self._bytes -= held[2]
