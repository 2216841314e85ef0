"""`hooks-approval`: tools that need a person's consent ask for it before they run, by the ecosystem's configuration.

Owns which call needs consent. Refuses to know who answers: it returns `ask_user`, and core asks the host's approval
system, which denies what nobody answers, whatever `default_action` says, and remembers "Allow always". Rules say which
shell commands are let through or refused without asking; `*` in a rule stands for any text, and a command that goes on
behind a separator is never let through by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from amplifier_core import HookResult

from amplifier_api_server.runtime.consent import USUAL_OPTIONS, shown

DEFAULT_PRIORITY = -10  # before hooks that act on what was let through
DEFAULT_TIMEOUT_SECONDS = 300.0
DEFAULT_RULES: tuple[Mapping[str, str], ...] = (
    {"pattern": "ls*", "action": "auto_approve"},
    {"pattern": "pwd", "action": "auto_approve"},
    {"pattern": "echo*", "action": "auto_approve"},
)
ACTIONS = ("auto_approve", "auto_deny")
HIGH_RISK = ("bash", "write_file", "edit_file")
MAX_SHOWN_CHARS = 2_000
_GOES_ON = re.compile(r"[;&|<>`\n\r]|\$\(")

Decision = Literal["allow", "deny", "ask"]


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
        self._rules = list(DEFAULT_RULES if config.get("rules") is None else config["rules"])
        for rule in self._rules:
            if not isinstance(rule, Mapping) or not rule.get("pattern") or rule.get("action") not in ACTIONS:
                raise ValueError(f"hooks-approval: a rule is {rule!r:.100}; it should have pattern and action")
        self._is_policy_driven = bool(config.get("policy_driven_only"))
        default = config.get("default_action", "deny")
        self._default: Literal["allow", "deny"] = "allow" if default in ("allow", "continue") else "deny"
        self._timeout_seconds = float(config.get("approval_timeout") or DEFAULT_TIMEOUT_SECONDS)

    async def handle(self, event: str, data: dict[str, Any]) -> HookResult:
        tool, given = str(data.get("tool_name") or "unknown"), data.get("tool_input") or {}
        if not self._needs_consent(tool):
            return HookResult(action="continue")
        decision = self.by_rule(tool, given)
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

    def by_rule(self, tool: str, given: Mapping[str, Any]) -> Decision:
        """What the rules say of a shell command: the first that fits. Of other tools they say nothing."""
        if tool != "bash":
            return "ask"
        command = str(given.get("command") or "").strip()
        for rule in self._rules:
            if not _fits(str(rule["pattern"]), command):
                continue
            if rule["action"] == "auto_deny":
                return "deny"
            if not _GOES_ON.search(command):
                return "allow"
        return "ask"

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


def _fits(pattern: str, command: str) -> bool:
    parts = map(re.escape, pattern.split("*"))
    return re.fullmatch(".*".join(parts), command, re.IGNORECASE | re.DOTALL) is not None


def _question(tool: str, given: Mapping[str, Any]) -> str:
    what = given.get("command") or given.get("file_path") or given
    return shown(f"{tool}: {what}", MAX_SHOWN_CHARS)
