"""One AmplifierSession of amplifier-core, made from a plan, with what its modules expect of a host, and taken apart
whole.

Owns the session object and knows core's traps (tests/runtime/contract says each as a test). Refuses to know HTTP,
turns' events or checkpoints. Invariant: a session whose every module mounted, or none; after `close` nothing of it is
held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amplifier_core import AmplifierSession
from pydantic_core import from_json

from amplifier_api_server.runtime.events import encoded
from amplifier_api_server.runtime.failures import BadRequest, Refused
from amplifier_api_server.runtime.module_loader import RuntimeModuleLoader
from amplifier_api_server.runtime.protocol import Failure
from amplifier_api_server.runtime.turn_port import CAPABILITY, TurnPort

log = logging.getLogger(__name__)

OPEN_SECONDS = 30.0  # for all modules of a session to mount
CLOSE_SECONDS = 5.0
MAX_STATE_BYTES = 1024 * 1024
_LOAD_FAILED = "module:load_failed"
_PROVIDER_ERROR = "provider:error"

Messages = list[dict[str, Any]]


class Host:
    """Made by `open_host`."""

    def __init__(self, session: Any, port: TurnPort) -> None:
        self._session = session
        self._coordinator = session.coordinator
        self.port = port
        self._unregister: list[Any] = []
        self._load_failures: list[str] = []

    async def start(self, plan: Mapping[str, Any], folders: Mapping[str, Path]) -> None:
        """Mount everything. Raises BadRequest (module_failed) naming each module that did not mount, and why."""
        coordinator = self._coordinator
        coordinator.loader = RuntimeModuleLoader(folders)
        coordinator.register_capability("session.working_dir", str(self.port.working_dir))
        coordinator.register_capability(CAPABILITY, self.port)
        self._listen(_LOAD_FAILED, self._note_load_failure)
        self._listen(_PROVIDER_ERROR, self._note_provider_error)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                await self._session.initialize()
        except TimeoutError:
            raise BadRequest("module_failed", f"the modules took longer than {OPEN_SECONDS:g} s to mount") from None
        except Exception as error:
            raise BadRequest("module_failed", str(error)[:2000]) from error
        if self._load_failures:
            raise BadRequest("module_failed", "; ".join(self._load_failures)[:2000])
        await self._set_prompt(str(plan.get("system_prompt") or ""))

    async def execute(self, prompt: str) -> str:
        """One turn of core's. Raises RuntimeError without a cause: why is at `port.turn.failure`, if anybody knew."""
        self._coordinator.cancellation.reset()
        self._coordinator.reset_turn()
        return str(await self._session.execute(prompt))

    async def cancel(self) -> None:
        await self._coordinator.request_cancel(immediate=True)

    async def messages(self) -> Messages:
        return [message for message in await self._context.get_messages() if message.get("role") != "system"]

    async def set_messages(self, messages: Messages) -> None:
        """The whole transcript. A system message of a context without a prompt factory stays in front."""
        kept = [message for message in await self._context.get_messages() if message.get("role") == "system"]
        await self._context.set_messages(kept + list(messages))

    def state(self) -> dict[str, Any]:
        """What modules keep beside the transcript, as JSON; nothing of it when it is over its bound."""
        todo = getattr(self._coordinator, "todo_state", None)
        if not todo:
            return {}
        text = encoded({"todo_state": todo})
        if len(text.encode()) > MAX_STATE_BYTES:
            log.warning("a session's state is over %d bytes and is not kept", MAX_STATE_BYTES)
            return {}
        plain: dict[str, Any] = from_json(text)
        return plain

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._coordinator.todo_state = state.get("todo_state") or []

    async def close(self) -> None:
        """Clean up and break every cycle: core alone never frees a closed session. Idempotent."""
        if self._session is None:
            return
        session, coordinator = self._session, self._coordinator
        self._session = self._coordinator = None
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await session.cleanup()
        except Exception:  # a module's cleanup is anybody's code
            log.exception("a session's cleanup failed")
        self._take_apart(coordinator)
        self.port.turn = None

    def _take_apart(self, coordinator: Any) -> None:
        for unregister in self._unregister:
            unregister()
        self._unregister.clear()
        for names in coordinator.hooks.list_handlers().values():
            for name in names:  # each as often as it is there: unregister() takes one away, of any event
                coordinator.hooks.unregister(name)
        for point, mounted in dict(coordinator.mount_points).items():
            if isinstance(mounted, dict):
                mounted.clear()
            elif point != "hooks":
                coordinator.mount_points[point] = None
        for holder in (coordinator.channels, coordinator.session_state, vars(coordinator)):
            with contextlib.suppress(AttributeError):
                holder.clear()
        with contextlib.suppress(AttributeError, TypeError):
            coordinator._cleanup_fns.clear()  # noqa: SLF001 - core offers no other way
        for name in (CAPABILITY, "session.working_dir"):
            coordinator.register_capability(name, None)
        coordinator.loader = None
        coordinator.approval_system = None
        coordinator.display_system = None
        with contextlib.suppress(TypeError):
            coordinator._set_session(None)  # noqa: SLF001 - core offers no other way

    @property
    def _context(self) -> Any:
        return self._coordinator.get("context")

    async def _set_prompt(self, prompt: str) -> None:
        if not prompt:
            return
        if hasattr(self._context, "set_system_prompt_factory"):

            async def factory() -> str:
                return prompt

            await self._context.set_system_prompt_factory(factory)
        else:
            await self._context.add_message({"role": "system", "content": prompt})

    def _listen(self, event: str, handler: Any) -> None:
        self._unregister.append(
            self._coordinator.hooks.register(event, handler, priority=-1000, name=f"host:{event}:{id(self)}")
        )

    async def _note_load_failure(self, event: str, data: dict[str, Any]) -> None:
        self._load_failures.append(f"{data.get('module_type')} {data.get('module_id')!r}: {data.get('error')}")

    async def _note_provider_error(self, event: str, data: dict[str, Any]) -> None:
        turn = self.port.turn
        if turn is not None:
            detail = str(
                data.get("error_message") or data.get("error") or data.get("error_type") or "the model call failed"
            )
            turn.fail(
                Failure(
                    code=str(data.get("code") or "model_failed"),
                    detail=detail[:2000],
                    retry_after_seconds=data.get("retry_after"),
                )
            )


class DenyingApprovals:
    """Nobody is there to ask yet, so every approval is denied, which is also core's answer without a system."""

    async def request_approval(self, prompt: str, options: list[str], timeout: float, default: str) -> str:
        log.info("an approval was asked for and denied: no door takes answers")
        return "Deny" if "Deny" in options else options[-1] if options else "Deny"


class LoggedDisplay:
    """Messages of hooks for a person. Their words may be the tenant's, so only that there was one is logged."""

    def show_message(self, message: str, level: str, source: str = "hook") -> None:
        log.debug("a message of %s for display, level %s", source, level)


async def open_host(
    session_id: str,
    plan: Mapping[str, Any],
    folders: Mapping[str, Path],
    port: TurnPort,
    *,
    transcript: Messages,
    state: Mapping[str, Any],
) -> Host:
    """A session, new or again. Raises Refused and leaves nothing."""
    config = {key: value for key, value in plan.items() if key in ("session", "providers", "tools", "hooks", "agents")}
    session = AmplifierSession(
        config,
        session_id=session_id,
        approval_system=DenyingApprovals(),
        display_system=LoggedDisplay(),
        is_resumed=bool(transcript),
    )
    host = Host(session, port)
    try:
        await host.start(plan, folders)
        if transcript:
            await host.set_messages(transcript)
        host.set_state(state)
    except BaseException as error:
        await host.close()
        if isinstance(error, Exception) and not isinstance(error, Refused):
            raise BadRequest("module_failed", f"{type(error).__name__}: {error}"[:2000]) from error
        raise
    return host
