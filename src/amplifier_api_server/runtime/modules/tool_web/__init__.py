"""`tool-web`: web_fetch, by way of the control plane, which alone has a network and decides what may be fetched.

There is no `web_search`: that needs a search service and its key, which the ecosystem's own module does not have either
(it answers with made-up results unless it is given one).
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from amplifier_core import ToolResult
from pydantic import ValidationError

from amplifier_api_server.runtime.gateway import GatewayError
from amplifier_api_server.runtime.modules import inputs
from amplifier_api_server.runtime.modules.tool_filesystem import files
from amplifier_api_server.runtime.modules.tool_web.page import text_of
from amplifier_api_server.runtime.protocol import TURN_HEADER, Failure, Fetch, Fetched, Gateway
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

DEFAULT_LIMIT_BYTES = 60_000  # below what a tool's output is cut at
MAX_FETCH_BYTES = 4 * 1024 * 1024
PREVIEW_CHARS = 1_000
IDLE_SECONDS = 60.0
_MAX_ANSWER_BYTES = 3 * MAX_FETCH_BYTES  # JSON may write a character as six
_HTML = ("text/html", "application/xhtml+xml")


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> None:
    port = coordinator.get_capability(CAPABILITY)
    if port is None:
        return  # without a gateway there is nothing to fetch by
    tool = WebFetchTool(port, extract_text=(config or {}).get("extract_text") is not False)
    await coordinator.mount("tools", tool, name=tool.name)


class WebFetchTool:
    name = "web_fetch"
    description = (
        "Fetch a page of the public web, as text. A long one is given in pieces: `offset` and `limit` are in bytes of its "
        "text. With `save_to_file` all of it goes to a file in the session's folder instead, and a preview is given."
    )
    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "An http or https address"},
            "save_to_file": {"type": "string", "description": "A path in the session's folder"},
            "offset": {"type": "integer", "minimum": 0},
            "limit": {"type": "integer", "minimum": 1},
        },
        "required": ["url"],
    }

    def __init__(self, port: TurnPort, *, extract_text: bool) -> None:
        self._port = port
        self._extract_text = extract_text

    async def execute(self, input: dict[str, Any]) -> ToolResult:  # noqa: A002 - the protocol's name
        if (wrong := inputs.wrong(input, self.input_schema)) is not None:
            return _failed(wrong)
        try:
            fetched = await self._fetch(str(input["url"]))
        except (GatewayError, _RefusedError) as error:
            return _failed(str(error))
        is_page = fetched.content_type.partition(";")[0].strip().lower() in _HTML
        text = await asyncio.to_thread(text_of, fetched.content) if is_page and self._extract_text else fetched.content
        about = {
            "url": fetched.url,
            "status": fetched.status,
            "content_type": fetched.content_type,
            "total_bytes": len(text.encode()),
            "truncated": fetched.is_cut,
        }
        if target := input.get("save_to_file"):
            return await self._saved(target, text, about)
        return ToolResult(output=about | _piece(text, input))

    async def _fetch(self, url: str) -> Fetched:
        """Raises GatewayError, _RefusedError."""
        turn = self._port.current()
        try:
            body = Fetch(url=url, max_bytes=MAX_FETCH_BYTES).model_dump_json().encode()
        except ValidationError:
            raise _RefusedError("url is too long") from None
        requested = self._port.services.gateway.request(
            "POST",
            Gateway.FETCH,
            body=body,
            headers={TURN_HEADER: turn.request_id},
            idle_timeout_seconds=IDLE_SECONDS,
        )
        async with requested as answer:
            told = await answer.read(_MAX_ANSWER_BYTES)
        try:
            if answer.status != 200:  # noqa: PLR2004
                raise _RefusedError(Failure.model_validate_json(told).detail)
            return Fetched.model_validate_json(told)
        except ValidationError:
            raise _RefusedError(f"the page could not be fetched ({answer.status})") from None

    async def _saved(self, target: str, text: str, about: dict[str, Any]) -> ToolResult:
        try:
            await asyncio.to_thread(files.write, self._port.working_dir, target, text)
        except files.FileToolError as error:
            return _failed(str(error))
        except OSError as error:
            return _failed(f"{target}: {error.strerror or error}")
        return ToolResult(output=about | {"saved_to": target, "content": text[:PREVIEW_CHARS]})


class _RefusedError(Exception):
    """The control plane did not fetch it, and says why."""


def _piece(text: str, given: dict[str, Any]) -> dict[str, Any]:
    """The bytes that are asked for, and where the next ones begin."""
    offset = int(given.get("offset") or 0)
    limit = min(int(given.get("limit") or DEFAULT_LIMIT_BYTES), DEFAULT_LIMIT_BYTES)
    data = text.encode()
    piece = data[offset : offset + limit]
    found: dict[str, Any] = {
        "content": piece.decode("utf-8", "ignore"),
        "offset": offset,
        "limit": limit,
        "returned_bytes": len(piece),
    }
    if offset + limit < len(data):
        found["next_offset"] = offset + limit
    return found


def _failed(message: str) -> ToolResult:
    return ToolResult(success=False, error={"message": message})
