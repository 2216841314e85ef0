"""Answers that are kept, and which are. Pure.

An answer is kept once the work has been done or refused for good. What says "not now", and what was refused before any work,
leaves the key free. Where nobody can know whether the work was done, nothing is pretended.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import orjson

from amplifier_api_server.control_plane.errors import PROBLEM_TYPE, STATUS, encode, problem_of, status_of
from amplifier_api_server.tenants.errors import (
    Conflict,
    DomainError,
    Gone,
    Invalid,
    Malformed,
    NotFound,
    TurnFailed,
    Unavailable,
)

MAX_ANSWER_BYTES: Final = 256 * 1024
KEPT_HEADERS: Final = frozenset({b"content-type", b"location"})
_REFUSED_BEFORE_WORK: Final = frozenset({400, 401, 403, 405, 408, 413, 415, 429})
_CLASSES: Final[Mapping[int, type[DomainError]]] = {
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    502: TurnFailed,
}
_NOT_NOW: Final = STATUS[Unavailable]
_OF_TURNS: Final = STATUS[TurnFailed]  # a sandbox failed, or what ran in it: the work had begun
_OWN_MEMBERS: Final = frozenset({"type", "title", "status", "detail", "code", "retry_after_seconds"})


class Fate(Enum):
    """What becomes of a key when its request has been answered."""

    KEEP = "keep"
    RELEASE = "release"
    RELEASE_UNLESS_DONE = "release_unless_done"  # it says "not now", which a failed commit says too
    UNKNOWN = "unknown"  # a mistake of our own, anywhere


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What is sent again."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    @property
    def is_too_large(self) -> bool:
        return len(self.body) > MAX_ANSWER_BYTES

    def packed(self) -> str:
        """As text, to be sealed."""
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers]
        body = base64.b64encode(self.body).decode()
        return orjson.dumps({"status": self.status, "headers": headers, "body": body}).decode()

    @classmethod
    def unpacked(cls, text: str) -> StoredAnswer:
        found = orjson.loads(text)
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in found["headers"])
        return cls(found["status"], headers, base64.b64decode(found["body"]))

    @classmethod
    def of_error(cls, error: DomainError) -> StoredAnswer:
        """The problem that the error is answered with."""
        raw = encode(problem_of(error))
        return cls(status_of(error), ((b"content-type", PROBLEM_TYPE.encode()),), raw)

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> StoredAnswer:
        return cls(200, ((b"content-type", b"application/json"),), encode(result))

    def result(self) -> dict[str, Any]:
        """What `of_result` was made of; raises the error that `of_error` was made of."""
        found: dict[str, Any] = orjson.loads(self.body)
        if self.status in _CLASSES:
            extra = {name: value for name, value in found.items() if name not in _OWN_MEMBERS}
            raise _CLASSES[self.status](found["detail"], code=found["code"], **extra)
        return found


def fate_of(status: int, *, comes_back: bool = False) -> Fate:
    """Of an answer with this status; `comes_back` where it says when to try again."""
    if status in _REFUSED_BEFORE_WORK:
        return Fate.RELEASE
    if status == _NOT_NOW or (status >= 400 and comes_back):  # noqa: PLR2004 - RFC 9110, 15.5
        return Fate.RELEASE_UNLESS_DONE
    if status >= 500 and status != _OF_TURNS:  # noqa: PLR2004 - RFC 9110, 15.6
        return Fate.UNKNOWN
    return Fate.KEEP


def fate_of_error(error: DomainError) -> Fate:
    if isinstance(error, Malformed):
        return Fate.RELEASE
    return fate_of(status_of(error), comes_back=error.retry_after_seconds is not None)


def fate_of_document(body: bytes, root_fields: int) -> Fate:
    """Of the answer to a GraphQL document with mutations: 200 whatever happened.

    Where one field failed that can't be null, no value of the others is in the answer: it says nothing of what they did.
    """
    try:
        found = orjson.loads(body)
        data, errors = found.get("data"), found.get("errors") or []
        if not errors or any(value is not None for value in (data or {}).values()):
            return Fate.KEEP
        if data is None and not any("path" in one for one in errors):
            return Fate.RELEASE  # refused as a whole, before any field
        extensions = errors[0].get("extensions") or {}
        fate = fate_of(int(extensions.get("status", 500)), comes_back="retry_after_seconds" in extensions)
    except (AttributeError, TypeError, ValueError):
        return Fate.UNKNOWN
    return fate if root_fields == 1 else Fate.KEEP
