"""What the control plane says to a runtime, as functions: one for each path of `runtime.protocol.Path` but the streams.

Every call has a timeout and a bound on what it reads. A runtime's `Failure` becomes `RuntimeRefused`; that it could not be
reached stays a RouterError. Nothing a runtime says is believed about anybody but its own tenant.
"""

from __future__ import annotations

from typing import TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from amplifier_api_server.control_plane.json_bounds import UnboundedJSON, loads
from amplifier_api_server.control_plane.pods.launcher import Address
from amplifier_api_server.control_plane.router.errors import Broken
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.runtime import protocol

# Answers that a hostile runtime chooses, and that this process parses, keeps and gives back at every waking.
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_PLAN_BYTES = protocol.MAX_PLAN_BYTES
_MAX_MANIFEST_BYTES = 512 * 1024
_MAX_OUTCOME_BYTES = 1024 * 1024  # of a tool: twice the protocol's bound on an output, each character escaped
_MAX_VALUES = 20_000
_JSON = [(b"content-type", b"application/json"), (b"accept", b"application/json")]

Shape = TypeVar("Shape", bound=BaseModel)


class RuntimeRefused(Exception):
    """A runtime answered with a failure of its own."""

    def __init__(self, status: int, failure: protocol.Failure) -> None:
        super().__init__(f"{status} {failure.code}: {failure.detail}")
        self.status = status
        self.failure = failure


class Calls:
    """Typed calls over a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def health(self, address: Address, timeout_seconds: float = 2.0) -> protocol.Health:
        return await self._call(address, "GET", protocol.Path.HEALTH, None, protocol.Health, timeout_seconds)

    async def claim(self, address: Address, claim: protocol.Claim) -> None:
        await self._call(address, "POST", protocol.Path.CLAIM, claim, None, 5)

    async def catalog(self, address: Address) -> protocol.Catalog:
        return await self._call(address, "GET", protocol.Path.CATALOG, None, protocol.Catalog, 10, _MAX_MANIFEST_BYTES)

    async def inspect(self, address: Address, body: protocol.Inspect) -> protocol.Inspection:
        path = protocol.Path.INSPECT
        return await self._call(address, "POST", path, body, protocol.Inspection, 30, _MAX_MANIFEST_BYTES)

    async def open_session(
        self, address: Address, session_id: str, body: protocol.OpenSession
    ) -> protocol.OpenedSession:
        path = protocol.Path.SESSION.format(session_id=session_id)
        return await self._call(address, "PUT", path, body, protocol.OpenedSession, 30, _MAX_PLAN_BYTES)

    async def close_session(self, address: Address, session_id: str) -> None:
        path = protocol.Path.SESSION.format(session_id=session_id)
        await self._call(address, "DELETE", path, None, None, 5)

    async def cancel(self, address: Address, session_id: str, request_id: str) -> None:
        path = protocol.Path.CANCEL.format(session_id=session_id, request_id=request_id)
        await self._call(address, "POST", path, None, None, 1)

    async def execute_tool(self, address: Address, name: str, body: protocol.ExecuteTool) -> protocol.ToolOutcome:
        path = protocol.Path.TOOL.format(name=quote(name, safe=""))
        seconds = body.timeout_seconds + 5
        return await self._call(address, "POST", path, body, protocol.ToolOutcome, seconds, _MAX_OUTCOME_BYTES)

    async def _call(
        self,
        address: Address,
        method: str,
        path: str,
        body: BaseModel | None,
        shape: type[Shape] | None,
        timeout_seconds: float,
        max_bytes: int = _MAX_ANSWER_BYTES,
    ) -> Shape:
        """One exchange. With `shape` None the answer's body is read and dropped, and the returned value means nothing."""
        sent = body.model_dump_json().encode() if body is not None else b""
        answer = await self._pool.request(
            address, method, path, headers=_JSON, body=sent, head_timeout_seconds=timeout_seconds
        )
        raw = await answer.read(max_bytes, timeout_seconds)
        if answer.status >= 400:  # noqa: PLR2004 - RFC 9110, 15.5
            raise RuntimeRefused(answer.status, _failure(raw))
        if shape is None:
            return None  # type: ignore[return-value]
        try:
            return shape.model_validate(loads(raw, max_values=_MAX_VALUES))
        except (UnboundedJSON, ValidationError) as error:
            raise Broken("the runtime's answer does not follow the protocol") from error


def _failure(raw: bytes) -> protocol.Failure:
    try:
        return protocol.Failure.model_validate(loads(raw, max_values=_MAX_VALUES))
    except (UnboundedJSON, ValidationError):
        return protocol.Failure(code="runtime_failed", detail="the sandbox answered with an error that can't be read")
