"""Which provider and model a child session gets, of those that its parent has.

Preferences are tried in order; a pattern (`claude-haiku-*`) is looked up in what the provider lists. Invariant: what
can't be honoured is passed over with a log line, and the child goes on with its parent's provider.
"""

from __future__ import annotations

import asyncio
import fnmatch
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amplifier_api_server.runtime.spawning import preferences_of, provider_index

if TYPE_CHECKING:
    from amplifier_api_server.runtime.host import Host

log = logging.getLogger(__name__)

RESOLVER = "model_role_resolver"  # the capability of routing modules: async resolve(role) -> preferences
ASK_SECONDS = 5.0
_PATTERN = frozenset("*?[")


async def preferences(parent: Host, agent: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """An agent's own: those it names, or what the session's resolver says for its `model_role`."""
    told = agent or {}
    if found := preferences_of(told.get("provider_preferences")):
        return found
    resolver, role = parent.capability(RESOLVER), told.get("model_role")
    if resolver is None or not role:
        return []
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return preferences_of(await resolver.resolve(role))
    except Exception as error:  # noqa: BLE001 - a module's code
        log.warning("a model role could not be resolved: %s", type(error).__name__)
        return []


async def chosen(parent: Host, wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of the preferences that the parent's plan can serve; {} when none can."""
    providers = list(parent.plan.get("providers") or [])
    for one in wanted:
        index = provider_index(providers, one["provider"])
        if index is None:
            continue
        if not _PATTERN & set(one["model"]):
            return one
        if model := await _matching(parent, one["provider"], one["model"]):
            return {**one, "model": model}
    if wanted:
        log.warning("none of %d provider preferences can be served; the child has its parent's provider", len(wanted))
    return {}


async def _matching(parent: Host, provider_name: str, pattern: str) -> str | None:
    """The last, by name, of the provider's models that match: names end in versions and dates."""
    short = provider_name.removeprefix("provider-")
    for name, provider in parent.providers.items():
        if short in (name, name.removeprefix("provider-")):
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    models = [str(getattr(model, "id", model)) for model in await provider.list_models()]
            except Exception as error:  # noqa: BLE001 - a module's code, and the gateway behind it
                log.warning("a provider did not list its models: %s", type(error).__name__)
                return None
            return max((model for model in models if fnmatch.fnmatchcase(model.lower(), pattern.lower())), default=None)
    return None
