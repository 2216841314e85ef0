"""Answers that are the same for everybody and do not change while the server runs: made once, compressed once, named once.

Owns their validators (ETag, RFC 9110, 8.8.3) and their compressed form. Nothing else is compressed: it would hold up the
event loop, and a stream would wait for its compressor.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from fastapi import Response

_ALWAYS_ASK: Final = "public, no-cache"  # it may be kept, and has to be asked for again: a 304 costs little
_WORTH_BYTES: Final = 1024
_NOT_MODIFIED: Final = 304

Headers = Iterable[tuple[bytes, bytes]]


class KeptAnswer:
    """One of them."""

    def __init__(
        self,
        body: bytes,
        media_type: str,
        headers: Mapping[str, str] = MappingProxyType({}),
        cache_control: str = _ALWAYS_ASK,
    ) -> None:
        self.body = body
        self.media_type = media_type
        self.headers = headers
        self.cache_control = cache_control
        self.name = hashlib.sha256(body).hexdigest()[:32]
        smaller = gzip.compress(body, mtime=0) if len(body) > _WORTH_BYTES else body
        self.gzipped = smaller if len(smaller) < len(body) else None

    def answer(self, asked: Headers) -> Response:
        """What a request with these headers gets: all of it, compressed where that is taken, or that it has it already."""
        is_gzipped = self.gzipped is not None and _takes_gzip(_value(asked, b"accept-encoding"))
        # Two forms of one thing are two representations, and have two names (RFC 9110, 8.8.3.3).
        headers = {
            "etag": f'"{self.name}-gzip"' if is_gzipped else f'"{self.name}"',
            "cache-control": self.cache_control,
            "vary": ", ".join(filter(None, (self.headers.get("vary"), "accept-encoding"))),
        }
        if self._is_had(_value(asked, b"if-none-match")):
            return Response(status_code=_NOT_MODIFIED, headers=headers)
        if is_gzipped:
            headers["content-encoding"] = "gzip"
        body = self.gzipped if is_gzipped else self.body
        return Response(body, media_type=self.media_type, headers={**self.headers, **headers})

    def _is_had(self, wanted: str) -> bool:
        """By its name, in whichever form (RFC 9110, 13.1.2: weak comparison)."""
        names = re.findall(r'"([^"]*)"', wanted)
        return wanted.strip() == "*" or any(one.removesuffix("-gzip") == self.name for one in names)


class KeptAnswers:
    """One application's, by what they are the answer to. Each is made in a thread, when it is asked for first."""

    def __init__(self) -> None:
        self._made: dict[Hashable, asyncio.Task[KeptAnswer]] = {}

    async def get(self, key: Hashable, make: Callable[[], KeptAnswer]) -> KeptAnswer:
        """That of `key`. There are as many as keys, so nobody who asks may make keys up."""
        task = self._made.get(key)
        if task is None or (task.done() and task.exception() is not None):
            task = self._made[key] = asyncio.create_task(asyncio.to_thread(make))
        return await asyncio.shield(task)


def _takes_gzip(accepted: str) -> bool:
    """Of `Accept-Encoding` (RFC 9110, 12.5.3): it names gzip, or anything, with a weight that is not 0."""
    weights: dict[str, bool] = {}
    for one in accepted.lower().split(","):
        coding, _, parameters = one.partition(";")
        weights[coding.strip()] = not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", parameters)
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", False)))


def _value(headers: Headers, name: bytes) -> str:
    return ", ".join(value.decode("latin-1") for one, value in headers if one == name)
