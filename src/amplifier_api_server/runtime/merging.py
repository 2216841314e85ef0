"""How a profile's settings lie over those that it extends. Pure; values are JSON, nothing given is changed.

Mappings merge deep, module lists by id with their configuration merged deep, everything else is replaced. What
`exclude` names is taken out of what is inherited, before the profile's own settings are laid over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MODULE_LISTS = ("providers", "tools", "hooks")

Settings = dict[str, Any]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """`above` laid over `below`, both whole profiles' settings (sections at the top)."""
    result = dict(below)
    for section, value in above.items():
        held = result.get(section)
        if section in MODULE_LISTS:
            result[section] = merged_modules(held or [], value or [])
        elif section == "session":
            result[section] = _merged_session(held or {}, value or {})
        else:
            result[section] = deep(held, value)
    return result


def deep(below: Any, above: Any) -> Any:
    """Mappings key by key, all the way down; of anything else, `above`."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return dict(below) | {key: deep(below[key], value) if key in below else value for key, value in above.items()}


def merged_modules(below: Sequence[Mapping[str, Any]], above: Sequence[Mapping[str, Any]]) -> list[Settings]:
    """Module lists: an item with an id of `below` is merged in its place, another one is added at the end."""
    result: dict[str, Settings] = {}
    for item in (*below, *above):
        held = result.get(identity(item))
        result[identity(item)] = dict(item) if held is None else deep(held, item)
    return list(result.values())


def identity(item: Mapping[str, Any]) -> str:
    """What makes two module items the same one."""
    return str(item.get("instance_id") or item.get("id") or item.get("module"))


def without(settings: Mapping[str, Any], exclude: Any) -> Settings:
    """`settings` less what `exclude` names: `{section: "all" | [ids]}`, or a list of ids for all sections."""
    if not isinstance(exclude, Mapping):
        exclude = dict.fromkeys((*MODULE_LISTS, "agents"), exclude or [])
    result = dict(settings)
    for section, names in exclude.items():
        if section not in result:
            continue
        if names == "all" or names is True:
            del result[section]
        elif section in MODULE_LISTS:
            result[section] = [
                one for one in result[section] if identity(one) not in names and one.get("module") not in names
            ]
        elif isinstance(result[section], list):
            result[section] = [one for one in result[section] if one not in names]
        elif isinstance(result[section], Mapping):
            result[section] = {key: value for key, value in result[section].items() if key not in names}
    return result


def _merged_session(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """As `deep`, but another orchestrator or context doesn't inherit the configuration of the one that it replaces."""
    result = dict(below)
    for key, value in above.items():
        above_module, below_module = _module_of(value), _module_of(result.get(key))
        same = above_module is None or above_module == below_module
        if same and isinstance(result.get(key), Mapping) and isinstance(value, Mapping):
            result[key] = deep(result[key], value)
        else:
            result[key] = value
    return result


def _module_of(value: Any) -> Any:
    return value.get("module") if isinstance(value, Mapping) else value
