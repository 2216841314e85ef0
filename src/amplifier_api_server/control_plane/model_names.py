"""Models' names: what an alias stands for, which provider speaks which dialect, and what a tier may ask for. Pure.

Owns the rules that the settings are checked by at the start and that the gateway resolves by; so both agree. Knows providers
only by what these rules read of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, Protocol, TypeVar

DEFAULT = "default"

# The dialects of calls, by the path that a client uses; which provider speaks which is `ModelProvider.dialect`'s to say.
DialectName = Literal["chat", "responses", "messages"]
DIALECTS: tuple[DialectName, ...] = ("chat", "responses", "messages")


_SIGNS = re.compile(r"[^A-Za-z0-9._/+-]")  # what is no part of a model's own name, with most vendors


class Provider(Protocol):
    """What of a provider decides about names."""

    @property
    def name(self) -> str: ...
    @property
    def dialect(self) -> str: ...
    @property
    def responses(self) -> bool: ...
    @property
    def models(self) -> tuple[str, ...]: ...


P = TypeVar("P", bound=Provider)


class WrongName(ValueError):
    """A name in the configuration that stands for nothing, or for itself."""


def dialects_of(provider: Provider) -> tuple[DialectName, ...]:
    """The dialects that a provider speaks, the one to prefer first."""
    if provider.dialect == "anthropic":
        return ("messages",)
    return ("chat", "responses") if provider.responses else ("chat",)


def expanded(aliases: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
    """What a name stands for, in order, aliases of aliases too and nothing twice; itself where it is no alias.

    Raises WrongName for a circle.
    """
    return tuple(dict.fromkeys(_expanded(aliases, name, ())))


def _expanded(aliases: Mapping[str, Sequence[str]], name: str, path: tuple[str, ...]) -> Iterable[str]:
    if name not in aliases:
        return [name]
    if name in path:
        raise WrongName(f"stands for itself: {' -> '.join([*path[path.index(name) :], name])}")
    return [leaf for one in aliases[name] for leaf in _expanded(aliases, one, (*path, name))]


def served(providers: Sequence[P], name: str, everybody: Sequence[P] = ()) -> tuple[P, str] | None:
    """The provider of "provider/model" or "model", and the name that it knows the model by.

    In this order: the provider that is named; one that lists the name; one that lists none, and so takes what it is asked
    for, but not what another one of `everybody` is named for or lists. A name with a slash may be a model's own, as in
    "org/model".
    """
    if (one := _by_name(providers, name)) is not None:
        return one
    if _by_name(everybody, name) is not None:
        return None
    return next(((provider, name) for provider in providers if not provider.models), None)


def _by_name(providers: Sequence[P], name: str) -> tuple[P, str] | None:
    prefix, _, rest = name.partition("/")
    for provider in providers:
        if provider.name == prefix and rest and (not provider.models or rest in provider.models):
            return provider, rest
    return next(((provider, name) for provider in providers if name in provider.models), None)


def may_ask(patterns: Sequence[str] | None, asked: str, provider: str, model: str, others: Iterable[str]) -> bool:
    """Whether a tier with these patterns (None: it has none) may have this target by the name that was asked for.

    A pattern is matched with "provider/model" and with the name as it was asked for. Where that name begins with the name
    of a provider (`others`) and another one serves it, only the former counts: `openai/*` is about the provider openai.
    What aggregators put behind a model's name to have another one answer (`:online`, `@eu`, `a,b`) is matched by no wildcard
    of a pattern that has no such sign, but for `*` and `provider/*`.
    """
    if patterns is None:
        return True
    names = [f"{provider}/{model}"]
    prefix, slash, _ = asked.partition("/")
    if not slash or prefix not in others:
        names.append(asked)
    return any(_matches(name, pattern) for name in names for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    if not fnmatchcase(name, pattern):
        return False
    return pattern == "*" or pattern.endswith("/*") or set(_SIGNS.findall(name)) <= set(_SIGNS.findall(pattern))


def wrong_names(
    providers: Sequence[Provider], aliases: Mapping[str, Sequence[str]], default: str | None
) -> list[tuple[str, str]]:
    """What is wrong with the configured names, as (setting, message). Nobody serves a name where nobody is configured:
    the demo stands in then, and knows none of them.
    """
    found = []
    for alias, names in aliases.items():
        setting = f"aliases.{alias}"
        if alias == DEFAULT:
            found.append((setting, "`default` is no alias; set models.default, which may name one"))
        elif not names:
            found.append((setting, "should list at least one model"))
        else:
            found += [(setting, message) for message in _wrong(providers, aliases, alias)]
    if default is not None and default != DEFAULT and default not in aliases:
        found += [("default", message) for message in _wrong(providers, aliases, default)]
    return found


def _wrong(providers: Sequence[Provider], aliases: Mapping[str, Sequence[str]], name: str) -> list[str]:
    try:
        leaves = expanded(aliases, name)
    except WrongName as error:
        return [str(error)]
    if DEFAULT in leaves:
        return ["`default` can't be in it; name the model"]
    return [f"no provider serves {leaf!r}" for leaf in leaves if providers and served(providers, leaf) is None]
