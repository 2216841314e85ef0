"""What a host offers to modules: by name (capabilities), by mention (files), and where messages for a person go.

docs/modules.md has the table of what the ecosystem's modules ask for. Invariant: everything that was registered in a
session, by us or by its modules, is taken back when it closes: core never does, and keeps what they hold.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from amplifier_api_server.runtime.bundles.mentions import Blocks, MentionResolver, expand, joined, plain_mentions

log = logging.getLogger(__name__)

WORKING_DIR = "session.working_dir"
MENTION_RESOLVER = "mention_resolver"
SPAWN = "session.spawn"
RESUME = "session.resume"
SELF_DEPTH = "self_delegation_depth"
REGISTER_APPROVALS = "approval.register_provider"  # not offered: taken, from hooks-approval as others have it
ROUTING = "session.routing"  # what routing modules hand down to children


class Prompt:
    """The system prompt, asked for at each request: what it mentions of the session's folder is read anew each time.

    `text` is rendered; `mentions` are those in it that mean files of the session's folder.
    """

    def __init__(self, text: str, mentions: Sequence[str], resolver: MentionResolver) -> None:
        self._text = text
        self._mentions = " ".join(mentions)
        self._resolver = resolver

    async def __call__(self) -> str:
        if not self._mentions:
            return self._text
        blocks = Blocks(self._resolver)
        blocks.gather(self._mentions)
        rendered = blocks.render()
        if rendered and "<context_file" in self._text:
            return f"{self._text}\n\n{rendered}"
        return joined(self._text, rendered)


def agent_prompt(instruction: str, resolver: MentionResolver) -> Prompt:
    """An agent's, with what it mentions of the pinned trees. Blocking: it reads files."""
    pinned = MentionResolver({})
    pinned.bundles = resolver.bundles
    missed: list[str] = []
    blocks = Blocks(pinned, lambda mention, _: missed.append(mention))
    blocks.gather(instruction)
    return Prompt(joined(instruction, blocks.render()), plain_mentions(missed), resolver)


def with_mentioned(instruction: str, resolver: MentionResolver) -> str:
    """What a child is asked, after the texts of what that mentions. Blocking: it reads files."""
    _, blocks = expand(instruction, resolver) if "@" in instruction else (instruction, "")
    return f"{blocks}\n\n{instruction}" if blocks else instruction


class LoggedDisplay:
    """Messages of hooks for a person. Their words may be the tenant's, so only that there was one is logged."""

    def show_message(self, message: str, level: str, source: str = "hook") -> None:
        log.debug("a message of %s for display, level %s", source, level)


def offer(coordinator: Any, offered: Mapping[str, Any]) -> None:
    """Register capabilities. Those that are None are left out."""
    for name, value in offered.items():
        if value is not None:
            coordinator.register_capability(name, value)


def withdraw_all(coordinator: Any) -> None:
    """Of the host's and the modules' own. Core has no way to list the channels' contributors, but to clear them."""
    for name in coordinator.to_dict().get("capabilities", ()):
        coordinator.register_capability(name, None)
