"""Tools that run at the provider: what of a request asks for them, in each dialect.

Owns the list of what a sandbox runs itself; everything else that is offered to a model is taken for the provider's own, so
that a tool that a vendor comes up with tomorrow is refused before it is known. Refuses to say which of them may be had: that
is `models.server_tools`. Such a tool reaches the network on its own account, past `web.deny`, and costs what no tokens tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# https://platform.openai.com/docs/guides/tools: those that the client runs. A search for tools finds the request's own.
_CLIENTS_OF_OPENAI = re.compile(
    r"function|custom|local_shell|apply_patch|computer(_use)?(_preview)?(_\d{4}.*)?|tool_search|namespace"
)
# https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/overview: the same, with the date of their version.
_CLIENTS_OF_ANTHROPIC = re.compile(
    r"custom|(bash|text_editor|computer|memory|tool_search_tool(_bm25|_regex)?)(_\d{8})?"
)
# Beside `tools`: OpenAI's search; what servers that speak its dialect have (OpenRouter's, xAI's, Azure's).
_FIELDS_OF_CHAT = ("web_search_options", "search_parameters", "plugins", "data_sources")
# A prompt that is kept on the provider's account brings tools of its own.
_FIELDS_OF_RESPONSES = ("prompt", "search_parameters", "plugins")
_FIELDS_OF_MESSAGES = ("mcp_servers",)
_MAX_CHARS = 64  # of a name, as it is told


def in_chat(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The types of tools that would run at the provider, and the names of fields that switch one on; each once."""
    return _once(_fields(body, _FIELDS_OF_CHAT), _tools(body.get("tools"), _CLIENTS_OF_OPENAI))


def in_responses(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The same; items of the input can bring tools too (those that a search has found)."""
    items = body.get("input")
    brought = (item.get("tools") for item in (items if isinstance(items, list) else ()) if isinstance(item, dict))
    found = (tool for tools in (body.get("tools"), *brought) for tool in _tools(tools, _CLIENTS_OF_OPENAI))
    return _once(_fields(body, _FIELDS_OF_RESPONSES), found)


def in_messages(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The same."""
    return _once(_fields(body, _FIELDS_OF_MESSAGES), _tools(body.get("tools"), _CLIENTS_OF_ANTHROPIC))


def _once(*found: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in found for name in names))


def _fields(body: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if body.get(name) not in (None, False, []))


def _tools(tools: Any, clients: re.Pattern[str]) -> Iterator[str]:
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict):
            continue  # the provider refuses it
        kind = tool.get("type")
        if kind is None:
            # Anthropic's custom tools need none; elsewhere such a one is named by its only member, as `google_search` is.
            kind = "custom" if "name" in tool or "function" in tool else next(iter(tool), "")
        if not clients.fullmatch(str(kind)) and not _is_local_shell(tool):
            yield str(kind)[:_MAX_CHARS]
        yield from _tools(tool.get("tools"), clients)  # a namespace has some


def _is_local_shell(tool: Mapping[str, Any]) -> bool:
    """OpenAI's shell runs in a container of the vendor's, unless it is said to be the client's own."""
    environment = tool.get("environment")
    return tool.get("type") == "shell" and isinstance(environment, dict) and environment.get("type") == "local"
