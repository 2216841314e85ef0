"""Server-sent events in any division into chunks, as the three dialects use them: each event is one JSON object.

Owns lines and JSON (WHATWG HTML, 9.2.6). Names of events are not read: all dialects say the kind in the data too. Invariant:
what comes out does not depend on where the chunks were cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from amplifier_api_server.runtime.dialects.answer import parsed
from amplifier_api_server.runtime.dialects.errors import broken

MAX_LINE_BYTES = 4 * 1024 * 1024
DONE = "[DONE]"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


class Events:
    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._rest = b""
        self._is_begun = False
        self._pending = b""  # of data that is no JSON yet: it may go on in the next line

    def feed(self, chunk: bytes) -> Iterator[dict[str, Any] | str]:
        """The events that are whole with this chunk: objects, or `DONE`. Raises StreamError."""
        data = self._rest + chunk
        held = b""
        if data.endswith(b"\r"):  # perhaps half of a line's end
            data, held = data[:-1], b"\r"
        lines = _LINE_END.split(data)
        self._rest = lines.pop() + held
        if len(self._rest) > MAX_LINE_BYTES:
            raise broken("a line of the model's stream is too long", self._provider)
        for line in lines:
            yield from self._line(line)

    def finish(self) -> Iterator[dict[str, Any] | str]:
        """What the stream's last line was, if it ended without a line's end. What is cut off is nobody's."""
        rest, self._rest = self._rest, b""
        yield from self._line(rest.rstrip(b"\r"))
        self._pending = b""

    def _line(self, line: bytes) -> Iterator[dict[str, Any] | str]:
        if not self._is_begun:
            self._is_begun, line = True, line.removeprefix(_BOM)
        if not line:
            if self._pending:
                raise broken("the model's stream holds what is no JSON object", self._provider)
            return
        if not line.startswith(b"data:"):
            return  # a comment, an event's name, an id
        data = line[5:].strip()
        if self._pending:
            data = self._pending + b"\n" + data
            if len(data) > MAX_LINE_BYTES:
                raise broken("an event of the model's stream is too long", self._provider)
        elif data == b"[DONE]":
            yield DONE
            return
        if not data:
            return
        try:
            event = parsed(data)
        except ValueError:
            self._pending = data
            return
        self._pending = b""
        yield object_of(event, self._provider)


def object_of(value: Any, provider: str) -> dict[str, Any]:
    """The object that an event's data is. Google wraps its errors in a list."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        raise broken("the model's stream holds what is no JSON object", provider)
    return value


def whole(body: bytes, provider: str) -> dict[str, Any]:
    """An answer that was not streamed, because the upstream can't."""
    try:
        return object_of(parsed(body.removeprefix(_BOM)), provider)
    except ValueError:
        raise broken("the model's answer is no JSON", provider) from None
