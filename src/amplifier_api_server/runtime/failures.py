"""Refusals: how anything in the runtime says no, with a code that reaches the caller.

Refused                  a status and a `Failure`; raised anywhere, answered by `app`
+-- BadRequest      422  the body or a file is wrong
+-- Missing         404  no such session, turn, tool, profile
+-- Conflicting     409  not now, or not with what is here already
"""

from __future__ import annotations

from typing import ClassVar

from amplifier_api_server.runtime.protocol import Failure


class Refused(Exception):
    status: ClassVar[int] = 500

    def __init__(
        self, code: str, detail: str, *, retry_after_seconds: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.failure = Failure(code=code, detail=detail, retry_after_seconds=retry_after_seconds)
        self.answer_status = status or self.status


class BadRequest(Refused):
    status = 422


class Missing(Refused):
    status = 404


class Conflicting(Refused):
    status = 409


class TurnFailed(Refused):
    """A turn ends in this failure; its transcript is rolled back."""

    status = 502
