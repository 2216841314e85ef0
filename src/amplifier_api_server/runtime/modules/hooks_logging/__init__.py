"""`hooks-logging`: a session's events, one JSON object a line, in `.amplifier/events.jsonl` of its own folder.

For the people and agents of the session to read; operators have the server's own log, in which no content is. What
hooks-redaction masks is masked here, since it runs first. Invariants: a turn never waits for a disk and never fails for
its log; the file is bounded: at its limit it becomes events.1.jsonl, and what was that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from amplifier_core import HookResult
from amplifier_core.events import ALL_EVENTS

from amplifier_api_server.runtime.events import encoded

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = 100  # after hooks-redaction
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_LINE_CHARS = 64 * 1024
MAX_WAITING = 1_000  # lines; more are dropped, and counted in the next line
SCHEMA = {"name": "amplifier.log", "ver": "1.0.0"}  # as the ecosystem's own logging hook names its lines
_FLUSH_SECONDS = 2.0
_STREAMED = ("llm:stream_block_delta", "content_block:delta")  # a line a token would be more than the rest together


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> Callable[[], Awaitable[None]]:
    """Config: exclude_events, additional_events, priority."""
    config = config or {}
    folder = Path(coordinator.get_capability("session.working_dir") or Path.cwd()) / ".amplifier"
    writer = EventFile(folder / "events.jsonl")
    excluded = {*_STREAMED, *(config.get("exclude_events") or ())}
    wanted = dict.fromkeys([*ALL_EVENTS, *(config.get("additional_events") or ())])
    session_id = getattr(coordinator, "session_id", None)

    async def handle(event: str, data: dict[str, Any]) -> HookResult:
        line = {"ts": datetime.now(UTC).isoformat(), "lvl": "INFO", "schema": SCHEMA, "event": event}
        writer.add(line | {"session_id": data.get("session_id") or session_id, "data": data})
        return HookResult(action="continue")

    priority = int(config.get("priority", DEFAULT_PRIORITY))
    unregister = [
        coordinator.hooks.register(event, handle, priority=priority, name=f"hooks-logging:{event}")
        for event in wanted
        if event not in excluded
    ]

    async def cleanup() -> None:
        for one in unregister:
            one()
        await writer.close()

    return cleanup


class EventFile:
    """Lines that wait for a thread to append them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[str] = []
        self._dropped = 0
        self._writing: asyncio.Task[None] | None = None

    def add(self, line: dict[str, Any]) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._dropped += 1
            return
        if self._dropped:
            line, self._dropped = line | {"dropped_before": self._dropped}, 0
        text = encoded(line)
        if len(text) > MAX_LINE_CHARS:
            text = encoded(line | {"data": {"cut": True, "chars": len(text), "begins": text[:2_000]}})
        self._waiting.append(text)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="hooks-logging")

    async def close(self) -> None:
        """Let what waits be written, for a while."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=_FLUSH_SECONDS)

    async def _write(self) -> None:
        while self._waiting:
            lines, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._append, "\n".join(lines) + "\n")
            except OSError as error:  # a full disk, or a session that made something else of the path
                log.warning("a session's events can't be logged: %s", error.strerror or error)

    def _append(self, text: str) -> None:
        """Never through a link: the session's own tools can put anything there."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_size > MAX_FILE_BYTES:
                self._path.replace(self._path.with_name("events.1.jsonl"))
        descriptor = os.open(self._path, flags, 0o644)
        with os.fdopen(descriptor, "ab") as file:
            file.write(text.encode())
