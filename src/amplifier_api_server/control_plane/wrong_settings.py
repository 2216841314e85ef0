"""What is wrong with a configuration, in the words of whoever wrote it: where each setting stands, and what it may have been
meant to be. Pure.

Owns the words. Refuses to repeat a value: it may be a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError

# Names that other servers, and earlier drafts of this one, have for what is said otherwise here or not at all.
_ELSEWHERE: Final[Mapping[tuple[str, ...], str]] = {
    ("server", "workers"): "one process serves all; leave it out",
    ("api", "version"): "the API's version is a part of its paths; leave it out",
    ("api", "base_path"): "the API's paths begin with /v1; leave it out",
    ("auth", "type"): "auth.methods lists the ways in, each with its type",
    ("rate_limiting", "backend"): "limits are kept in memory; leave it out",
    ("rate_limiting", "redis_url"): "limits are kept in memory; leave it out",
}


if TYPE_CHECKING:
    _SafeLoader = yaml.SafeLoader
else:
    _SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's reads ten times as fast


class SingleKeys(_SafeLoader):
    """YAML whose mappings have each key once (YAML 1.2.2, 3.2.1.3): one of two values would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise yaml.YAMLError(f"line {line}: {key.value} is there twice, first in line {lines[key.value]}")
        return super().construct_mapping(node, deep)


class Sources:
    """Where values came from: the file's, by its name, and the environment's, by their variables."""

    def __init__(self, file: str, in_file: Mapping[str, Any], variables: Mapping[tuple[str, ...], str]) -> None:
        self._file = file
        self._in_file = in_file
        self._variables = variables

    def of(self, path: Sequence[str | int]) -> str:
        """What to call it by; "" for what was said elsewhere, or nowhere."""
        for length in range(len(path), 0, -1):
            if (variable := self._variables.get(tuple(map(str, path[:length])))) is not None:
                return variable
        here: Any = self._in_file
        for part in path:
            found = _member(here, part)
            if found is None:  # one that is missing, or a name that pydantic has for one of several kinds
                break
            here = found
        return self._file if here is not self._in_file else ""


def _member(of: Any, part: str | int) -> Any:
    if isinstance(of, Mapping):
        return of.get(part)
    if isinstance(of, list | tuple) and isinstance(part, int):
        return of[part] if part < len(of) else None
    return None


def in_words(error: ValidationError, settings: type[BaseModel], sources: Sources) -> str:
    """One line for each wrong setting: where it stands, its name, and what it should be."""
    lines = []
    for one in error.errors(include_url=False, include_input=False):
        path = one["loc"]
        name, source = ".".join(map(str, path)) or "settings", sources.of(path)
        elsewhere = _ELSEWHERE.get(tuple(map(str, path)))
        if elsewhere is not None:
            says = elsewhere
        elif one["type"] == "extra_forbidden":
            says = f"there is no such setting{_near(settings, path)}"
        else:
            says = one["msg"]
        lines.append(f"{source}: {name}: {says}" if source else f"{name}: {says}")
    return "the configuration is wrong\n  " + "\n  ".join(lines)


def _near(settings: type[BaseModel], path: Sequence[str | int]) -> str:
    """A name that is like the last one, among those that there are; all of them where none is."""
    there = _names_at(settings, path[:-1])
    if not there:
        return ""
    alike = difflib.get_close_matches(str(path[-1]), there, n=1)
    return f"; did you mean {alike[0]}?" if alike else f"; there are {', '.join(there)}"


def _names_at(settings: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    kinds: list[Any] = [settings]
    for part in path:
        if isinstance(part, int):
            continue
        fields = [one.model_fields[part].annotation for one in kinds if part in one.model_fields]
        if fields:  # otherwise it is the name of one of several kinds
            kinds = [kind for field in fields for kind in _models_in(field)]
    return list(dict.fromkeys(name for kind in kinds for name in kind.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for one in get_args(annotation) for kind in _models_in(one)]
