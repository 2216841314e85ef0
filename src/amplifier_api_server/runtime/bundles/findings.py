"""What comes up while bundles are read: what is missing, what is wrong, what is only worth a word.

Compiling stops at the first thing that is wrong. Inspecting goes on, because the whole list of what is wanted is what
the control plane fetches next. Invariant: each list is bounded and says a thing once.
"""

from __future__ import annotations

from collections.abc import Iterable

from amplifier_api_server.runtime.failures import BadRequest, Missing
from amplifier_api_server.runtime.protocol import MAX_SOURCES, Wanted

INVALID = "profile_invalid"
MAX_WARNINGS = 100
_MAX_PROBLEMS = 20
_MAX_TOLD_CHARS = 300


class Findings:
    """Of one compilation (`collecting` false) or one inspection."""

    def __init__(self, *, collecting: bool = False, lacks: Iterable[str] = (), skips_missing: bool = False) -> None:
        self._collecting = collecting
        self._skips_missing = skips_missing
        self._missing: dict[str, None] = {}
        self._lacks = frozenset(lacks)
        self._wanted: dict[str, Wanted] = {}
        self._problems: dict[str, None] = {}
        self._warnings: dict[str, None] = {}

    @property
    def wanted(self) -> list[Wanted]:
        return list(self._wanted.values())

    @property
    def warnings(self) -> list[str]:
        return list(self._warnings)

    @property
    def missing_parts(self) -> list[str]:
        return list(self._missing)

    def part_is_left_out(self, part: str, at: str) -> bool:
        """A source is here without this part (`uri#subdirectory=x`), and the collection goes without it, or will."""
        if self.is_left_out(part, at):
            return True
        if self._skips_missing and len(self._missing) < MAX_SOURCES:
            self._missing[part] = None
            return True
        return False

    def is_waiting(self) -> bool:
        """Something is still to be fetched, so what seems wrong may come right."""
        return bool(self._missing) or any(not one.optional for one in self._wanted.values())

    def warn(self, message: str) -> None:
        if len(self._warnings) < MAX_WARNINGS:
            self._warnings[message[:_MAX_TOLD_CHARS]] = None

    def is_left_out(self, uri: str, at: str) -> bool:
        """The collection was installed without `uri`, on purpose."""
        if uri not in self._lacks:
            return False
        self.warn(f"{at}: left out, because the collection was installed without {uri}")
        return True

    def want(self, uri: str, at: str, *, optional: bool = False) -> None:
        """`uri` is named at `at` and isn't here. Raises BadRequest when compiling, unless it can be done without."""
        if self.is_left_out(uri, at):
            return
        if not self._collecting and not optional:
            raise BadRequest(INVALID, f"{at}: {uri} is not installed with the session's collections")
        if optional:
            self.warn(f"{at}: left out, because {uri} is optional and not here")
        if not self._collecting:
            return
        held = self._wanted.get(uri)
        if held is None and len(self._wanted) >= MAX_SOURCES:
            raise BadRequest("collection_invalid", f"{at}: it is made of more than {MAX_SOURCES} sources")
        if held is None or (held.optional and not optional):
            self._wanted[uri] = Wanted(uri=uri, wanted_by=at[:_MAX_TOLD_CHARS], optional=optional)

    def wrong(self, error: BadRequest) -> None:
        """Raises it when compiling."""
        if not self._collecting:
            raise error
        if len(self._problems) < _MAX_PROBLEMS:
            self._problems[error.failure.detail] = None

    def problem(self, at: str, message: str, *, optional: bool = False) -> None:
        if optional:
            self.warn(f"{at}: {message}")
        else:
            self.wrong(BadRequest(INVALID, f"{at}: {message}"))

    def missing(self, at: str, message: str) -> None:
        """What another collection may have. Raises Missing (profile_not_found) when compiling."""
        if not self._collecting:
            raise Missing("profile_not_found", f"{at}: {message}")
        self.warn(f"{at}: {message} here; a session needs the collection that has it")

    def raise_problems(self) -> None:
        """Raises BadRequest with all of them."""
        if self._problems:
            raise BadRequest(INVALID, "; ".join(self._problems))
