"""`hooks-approval`: tools that need a person's consent ask for it before they run, by the ecosystem's configuration.

Owns which call needs consent. Refuses to know who answers: it returns `ask_user`, and core asks the host's approval
system, which denies what nobody answers, whatever `default_action` says, and remembers "Allow always". `rules` says which
shell commands are let through or refused without asking; of other tools they say nothing. Invariants: the question has
everything that the tool is given, or its digest; a call is refused where the hook fails, because core goes on without a
hook that raises.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

from amplifier_core import HookResult

from amplifier_api_server.runtime.consent import USUAL_OPTIONS, shown
from amplifier_api_server.runtime.modules.hooks_approval.rules import DEFAULT_RULES, Rule, decide

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = -10  # before hooks that act on what was let through
DEFAULT_TIMEOUT_SECONDS = 300.0
HIGH_RISK = ("bash", "write_file", "edit_file", "apply_patch")
MAX_SHOWN_CHARS = 2_000


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> Callable[[], None]:
    """Config: tools {name: {require_approval}}, rules [{pattern, action}], policy_driven_only, default_action,
    approval_timeout. Raises ValueError.
    """
    hook = ApprovalHook(coordinator, config or {})
    unregister = coordinator.hooks.register(
        "tool:pre", hook.handle, priority=int((config or {}).get("priority", DEFAULT_PRIORITY)), name="hooks-approval"
    )

    def cleanup() -> None:
        unregister()

    return cleanup


class ApprovalHook:
    def __init__(self, coordinator: Any, config: dict[str, Any]) -> None:
        self._coordinator = coordinator
        self._tools: Mapping[str, Any] = config.get("tools") or {}
        self._rules = [Rule.of(one) for one in (DEFAULT_RULES if config.get("rules") is None else config["rules"])]
        self._is_policy_driven = bool(config.get("policy_driven_only"))
        default = config.get("default_action", "deny")
        self._default: Literal["allow", "deny"] = "allow" if default in ("allow", "continue") else "deny"
        self._timeout_seconds = float(config.get("approval_timeout") or DEFAULT_TIMEOUT_SECONDS)

    async def handle(self, event: str, data: dict[str, Any]) -> HookResult:
        """Never raises."""
        try:
            return await self._answer(str(data.get("tool_name") or "unknown"), data.get("tool_input") or {})
        except Exception:
            log.exception("hooks-approval failed; the call is refused")
            return HookResult(action="deny", reason="whether this call needs consent could not be found out")

    async def _answer(self, tool: str, given: Mapping[str, Any]) -> HookResult:
        if not self._needs_consent(tool):
            return HookResult(action="continue")
        decision = decide(self._rules, given.get("command")) if tool == "bash" else "ask"
        await self._tell("approval:required", tool)
        if decision == "allow":
            await self._tell("approval:granted", tool, reason="let through by a rule")
            return HookResult(action="continue")
        if decision == "deny":
            await self._tell("approval:denied", tool, reason="refused by a rule")
            return HookResult(action="deny", reason="refused by a rule of this session")
        return HookResult(
            action="ask_user",
            approval_prompt=_question(tool, given),
            approval_options=list(USUAL_OPTIONS),
            approval_timeout=self._timeout_seconds,
            approval_default=self._default,
        )

    def _needs_consent(self, tool: str) -> bool:
        state = getattr(self._coordinator, "session_state", None)
        if isinstance(state, Mapping) and tool in (state.get("require_approval_tools") or ()):
            return True
        if self._is_policy_driven:
            return False
        said = self._tools.get(tool)
        if isinstance(said, Mapping) and said.get("require_approval") is not None:
            return bool(said["require_approval"])
        return tool in HIGH_RISK

    async def _tell(self, event: str, tool: str, **more: Any) -> None:
        await self._coordinator.hooks.emit(event, {"tool_name": tool, **more})


def _question(tool: str, given: Mapping[str, Any]) -> str:
    """What is asked for in the first line, then all else that the tool is given: nobody consents to what they don't see."""
    subject = next((name for name in ("command", "file_path") if isinstance(given.get(name), str)), None)
    hidden = {subject, "timeout"} if tool == "bash" else {subject}
    more = {name: value for name, value in given.items() if name not in hidden}
    what = [str(given[subject])] if subject else []
    if more or not what:
        what.append(json.dumps(more, ensure_ascii=False, default=str))
    text = "\n".join(what)
    seen = "".join(one if one.isprintable() or one in "\n\t" else f"\\u{ord(one):04x}" for one in text)
    note = "" if seen == text else " (what does not show is written as \\u and its number)"
    return shown(f"{tool}{note}: {seen}", MAX_SHOWN_CHARS)
