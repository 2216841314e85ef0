"""`hooks-redaction`: secrets, and personal data by the ecosystem's simple rules, masked in what later hooks see.

Mount it before whatever writes events down: hooks of a lower priority number run first. Events whose data goes back to the
model (`tool:pre`, `tool:post`, the prompt) are left alone, since what is masked there is lost for the work itself.
Invariant: what was given is never changed, a masked copy is handed on; what can't be masked is handed on without content.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from amplifier_core import HookResult

log = logging.getLogger(__name__)

DEFAULT_PRIORITY = 10  # before hooks-logging
MAX_DEPTH = 24
RULES: dict[str, tuple[re.Pattern[str], ...]] = {
    "secrets": (
        re.compile(r"\bAKIA[0-9A-Z]{16}\b"),  # AWS
        re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),  # Slack
        re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),  # Google
        re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),  # GitHub
        re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),  # OpenAI, Anthropic and those who took the form from them
        re.compile(r"\bamp_live_[A-Za-z0-9]{38,}\b"),  # ours
        re.compile(r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"),  # JWT
        re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[\s\S]{0,8192}?-----END [A-Z ]{0,30}PRIVATE KEY-----"),
    ),
    "pii-basic": (
        re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}\b"),
        re.compile(r"(?<![\w.])\+?\d[\d\s().-]{7,20}\d(?![\w.])"),
    ),
}
_MASKS = {"secrets": "[REDACTED:SECRET]", "pii-basic": "[REDACTED:PII]"}
EVENTS = (
    "prompt:complete",
    "provider:request",
    "provider:response",
    "provider:error",
    "llm:request",
    "llm:response",
    "tool:pre",
    "tool:post",
    "tool:error",
    "content_block:end",
    "context:pre_compact",
    "context:post_compact",
    "artifact:read",
    "artifact:write",
    "policy:violation",
    "approval:required",
    "approval:granted",
    "approval:denied",
    "execution:end",
    "orchestrator:complete",
)
DEFAULT_SKIPPED = ("tool:pre", "tool:post")


async def mount(coordinator: Any, config: dict[str, Any] | None = None) -> Callable[[], None]:
    """Config: rules, allowlist (paths into the data that are left alone), skip_events, priority. Raises ValueError."""
    config = config or {}
    rules = list(config.get("rules") or RULES)
    if unknown := [rule for rule in rules if rule not in RULES]:
        raise ValueError(f"hooks-redaction: rules has {unknown!r}; there are {', '.join(RULES)}")
    redaction = Redaction(rules, frozenset(config.get("allowlist") or ()))
    skipped = set(DEFAULT_SKIPPED if config.get("skip_events") is None else config["skip_events"])
    priority = int(config.get("priority", DEFAULT_PRIORITY))
    unregister = [
        coordinator.hooks.register(event, redaction.handle, priority=priority, name=f"hooks-redaction:{event}")
        for event in EVENTS
        if event not in skipped
    ]

    def cleanup() -> None:
        for one in unregister:
            one()

    return cleanup


class Redaction:
    def __init__(self, rules: list[str], allowlist: frozenset[str]) -> None:
        self._rules = rules
        self._allowlist = allowlist

    async def handle(self, event: str, data: dict[str, Any]) -> HookResult:
        masked = self.masked(data, "", 0)
        if masked == data:
            return HookResult(action="continue")
        masked["redaction"] = {"applied": True, "rules": self._rules}
        return HookResult(action="modify", data=masked)

    def masked(self, value: Any, path: str, depth: int) -> Any:
        """A copy of `value` with every text in it masked. `path` names it as the allow list does: a.b[0].c."""
        if path in self._allowlist:
            return value
        if depth > MAX_DEPTH:
            return "[REDACTED:TOO_DEEP]"
        match value:
            case str():
                return self.text(value)
            case list() | tuple():
                return [self.masked(one, f"{path}[{index}]", depth + 1) for index, one in enumerate(value)]
            case dict():
                return {
                    key: self.masked(one, f"{path}.{key}" if path else str(key), depth + 1)
                    for key, one in value.items()
                }
            case _:
                return value

    def text(self, text: str) -> str:
        for rule in self._rules:
            for pattern in RULES[rule]:
                text = pattern.sub(_MASKS[rule], text)
        return text
