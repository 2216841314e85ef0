"""What the control plane says to a runtime, as functions: one for each path of `runtime.protocol.Path` but the streams.

Every call has a timeout and a bound on what it reads. A runtime's `Failure` becomes `RuntimeRefused`; that it could not be
reached stays a RouterError. Nothing a runtime says is believed about anybody but its own tenant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import IO, TypeVar
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
_MAX_APPROVALS_BYTES = 2 * 1024 * 1024
_MAX_VALUES = 20_000
_MAX_PLAN_VALUES = 100_000  # of a compiled plan with many agents, or an inspection with many sources
_MAX_INSPECTION_BYTES = 2 * 1024 * 1024
_INSPECT_SECONDS = 60.0
_PACKAGES_IDLE_SECONDS = 30.0
_WRITE_BYTES = 1024 * 1024
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
        """What is in an image whose trees were put there; reading a large one takes seconds."""
        path = protocol.Path.INSPECT
        return await self._call(
            address, "POST", path, body, protocol.Inspection, _INSPECT_SECONDS, _MAX_INSPECTION_BYTES, _MAX_PLAN_VALUES
        )

    async def compile(self, address: Address, body: protocol.CompileProfile) -> protocol.CompiledProfile:
        path, most = protocol.Path.COMPILE, _MAX_PLAN_BYTES + _MAX_MANIFEST_BYTES
        return await self._call(address, "POST", path, body, protocol.CompiledProfile, 30, most, _MAX_PLAN_VALUES)

    async def build(self, address: Address, build_id: str, body: protocol.Build) -> protocol.Built:
        path, seconds = protocol.Path.BUILD.format(build_id=build_id), body.timeout_seconds + 10
        return await self._call(address, "POST", path, body, protocol.Built, seconds, _MAX_MANIFEST_BYTES)

    async def packages(self, address: Address, build_id: str, into: IO[bytes], *, max_bytes: int) -> None:
        """Write what a build made into a file, as it comes. Raises Broken when it is more than `max_bytes`."""
        path = protocol.Path.PACKAGES.format(build_id=build_id)
        answer = await self._pool.request(address, "GET", path, head_timeout_seconds=_PACKAGES_IDLE_SECONDS)
        if answer.status >= 400:  # noqa: PLR2004 - RFC 9110, 15.5
            raise RuntimeRefused(answer.status, _failure(await answer.read(_MAX_ANSWER_BYTES, _PACKAGES_IDLE_SECONDS)))
        left, waiting = max_bytes, bytearray()
        async for chunk in answer.chunks(_PACKAGES_IDLE_SECONDS):
            left -= len(chunk)
            if left < 0:
                raise Broken(f"the packages are larger than {max_bytes} bytes")
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                await asyncio.to_thread(into.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(into.write, bytes(waiting))

    async def open_session(
        self, address: Address, session_id: str, body: protocol.OpenSession, transcript: Sequence[str] = ()
    ) -> protocol.OpenedSession:
        """`transcript` is `body.transcript`, each message as JSON: it is passed on, not parsed and written again."""
        path = protocol.Path.SESSION.format(session_id=session_id)
        rest = body.model_dump_json(exclude={"transcript"}).encode()
        sent = b'%b,"transcript":[%b]}' % (rest[:-1], ",".join(transcript).encode())
        return await self._call(address, "PUT", path, sent, protocol.OpenedSession, 30, _MAX_PLAN_BYTES)

    async def close_session(self, address: Address, session_id: str) -> None:
        path = protocol.Path.SESSION.format(session_id=session_id)
        await self._call(address, "DELETE", path, None, None, 5)

    async def cancel(self, address: Address, session_id: str, request_id: str) -> None:
        path = protocol.Path.CANCEL.format(session_id=session_id, request_id=request_id)
        await self._call(address, "POST", path, None, None, 1)

    async def approvals(self, address: Address, session_id: str, request_id: str) -> protocol.ApprovalList:
        path = protocol.Path.APPROVALS.format(session_id=session_id, request_id=request_id)
        return await self._call(address, "GET", path, None, protocol.ApprovalList, 5, _MAX_APPROVALS_BYTES)

    async def answer_approval(
        self, address: Address, session_id: str, request_id: str, approval_id: str, body: protocol.ApprovalAnswer
    ) -> protocol.ApprovalEvent:
        path = protocol.Path.APPROVAL.format(
            session_id=session_id, request_id=request_id, approval_id=quote(approval_id, safe="")
        )
        return await self._call(address, "POST", path, body, protocol.ApprovalEvent, 5)

    async def execute_tool(self, address: Address, name: str, body: protocol.ExecuteTool) -> protocol.ToolOutcome:
        path = protocol.Path.TOOL.format(name=quote(name, safe=""))
        seconds = body.timeout_seconds + 5
        return await self._call(address, "POST", path, body, protocol.ToolOutcome, seconds, _MAX_OUTCOME_BYTES)

    async def _call(
        self,
        address: Address,
        method: str,
        path: str,
        body: BaseModel | bytes | None,
        shape: type[Shape] | None,
        timeout_seconds: float,
        max_bytes: int = _MAX_ANSWER_BYTES,
        max_values: int = _MAX_VALUES,
    ) -> Shape:
        """One exchange. With `shape` None the answer's body is read and dropped, and the returned value means nothing."""
        sent = body.model_dump_json().encode() if isinstance(body, BaseModel) else body or b""
        answer = await self._pool.request(
            address, method, path, headers=_JSON, body=sent, head_timeout_seconds=timeout_seconds
        )
        raw = await answer.read(max_bytes, timeout_seconds)
        if answer.status >= 400:  # noqa: PLR2004 - RFC 9110, 15.5
            raise RuntimeRefused(answer.status, _failure(raw))
        if shape is None:
            return None  # type: ignore[return-value]
        try:
            return shape.model_validate(loads(raw, max_values=max_values))
        except (UnboundedJSON, ValidationError) as error:
            raise Broken("the runtime's answer does not follow the protocol") from error


def _failure(raw: bytes) -> protocol.Failure:
    try:
        return protocol.Failure.model_validate(loads(raw, max_values=_MAX_VALUES))
    except (UnboundedJSON, ValidationError):
        return protocol.Failure(code="runtime_failed", detail="the sandbox answered with an error that can't be read")
