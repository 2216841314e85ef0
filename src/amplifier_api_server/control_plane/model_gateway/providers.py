"""Which provider serves which model's name for whom, and what is sent to it.

Owns names, addresses, tiers' models and whose key goes out. A key leaves this module in one header of a request to its
own provider, and nowhere else. Invariant: a tenant's own key is in no target but that tenant's; where a provider takes
tenants' own keys alone, the operator's is never sent in its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol
from urllib.parse import urlencode, urlsplit, urlunsplit

from pydantic import SecretStr

from amplifier_api_server import __version__
from amplifier_api_server.control_plane.model_gateway.answers import Refusal
from amplifier_api_server.control_plane.model_gateway.catalogue import Known, ListPrice, ModelCatalogue, load_catalogue
from amplifier_api_server.control_plane.model_gateway.listings import Listings
from amplifier_api_server.control_plane.model_gateway.targets import DialectName, Price, Route, Target
from amplifier_api_server.control_plane.model_gateway.upstream import Timeouts, Upstream
from amplifier_api_server.control_plane.model_names import (
    DEFAULT,
    DIALECTS,
    WrongName,
    dialects_of,
    expanded,
    may_ask,
    served,
)
from amplifier_api_server.control_plane.settings import ModelProvider, Models
from amplifier_api_server.tenants.ids import TenantId

_ANTHROPIC_VERSION = "2023-06-01"  # the only one there is: https://docs.claude.com/en/api/versioning
_MIN_SECRET_BYTES = 8  # "none" and "EMPTY" are what local servers are given
_MAX_NAME_SHOWN = 200

# How a key is sent where the provider doesn't say: as the dialect's vendor wants it.
_KEY_HEADERS = {"openai": "authorization", "anthropic": "x-api-key"}


class TenantKeys(Protocol):
    """Tenants' own keys."""

    async def key_of(self, tenant_id: TenantId, provider: str) -> SecretStr | None:
        """The tenant's key for this provider, None where it has none. Raises Refusal where it can't be read."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A name that a tenant may ask for, and what stands behind it."""

    name: str  # "default", an alias, "model", or "provider/model" where an earlier provider has the plain name
    provider: str  # of the first target
    model: str  # of the first target
    targets: tuple[str, ...]  # "provider/model", in the order in which they are tried
    dialects: tuple[DialectName, ...]
    known: Known  # of the first target, but bounds are the least of all targets'
    is_own_key: bool = False  # the first target is asked with the tenant's own key
    needs_own_key: bool = False  # and it has none: nothing goes out until it is set

    @property
    def is_alias(self) -> bool:
        """The name is the configuration's, not the model's."""
        return self.name not in {self.model, f"{self.provider}/{self.model}"}

    @property
    def price(self) -> ListPrice | None:
        return self.known.list_price


def url_for(target: Target, path: str) -> str:
    """The address of one of the provider's paths ("/chat/completions"), with the query that it asks for."""
    return _url(target.provider, path)


def _url(provider: ModelProvider, path: str) -> str:
    parts = urlsplit(str(provider.base_url))
    query = "&".join(one for one in (parts.query, urlencode(provider.query)) if one)
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + path, query, ""))


def headers_for(target: Target, dialect: DialectName) -> dict[str, str]:
    """All that a provider is told beside the body. Nothing of the sandbox's own headers."""
    headers = {
        "Accept": "text/event-stream, application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "User-Agent": f"amplifier-api-server/{__version__}",
    }
    if dialect == "messages":
        headers["anthropic-version"] = _ANTHROPIC_VERSION
    if target.key is not None:
        key = target.key.get_secret_value()
        match target.provider.key_header or _KEY_HEADERS[target.provider.dialect]:
            case "authorization":
                headers["Authorization"] = f"Bearer {key}"
            case name:
                headers[name] = key
    return headers


def key_of(target: Target) -> bytes:
    """The key as bytes, to be looked for in answers; empty where there is none or it is too short to be a secret."""
    key = target.key.get_secret_value().encode() if target.key is not None else b""
    return key if len(key) >= _MIN_SECRET_BYTES else b""


def target_of(provider: ModelProvider, model: str = "") -> Target:
    """As the operator asks, with the operator's own key."""
    return Target(provider, model, provider.api_key)


class Providers:
    """The configured providers, in their order."""

    def __init__(
        self,
        settings: Models,
        upstream: Upstream,
        timeouts: Timeouts,
        *,
        catalogue: ModelCatalogue | None = None,
        keys: TenantKeys | None = None,
    ) -> None:
        self._settings = settings
        self._providers = settings.providers
        self._names = frozenset(provider.name for provider in settings.providers)
        self._catalogue = catalogue or load_catalogue(settings.catalog)
        self._keys = keys
        self._listings = Listings(upstream, timeouts)

    async def route(self, *, tenant_id: TenantId, tier: str, model: str, dialect: DialectName) -> Route:
        """Where a call of a model's name goes, in the dialect that it was made in.

        Raises Refusal: 404 `model_not_found`; 403 `model_not_allowed` by the tier, `provider_key_required` where only the
        tenant's own key would do; 502 where a provider has to be asked for its models and can't be; 503
        `provider_key_unreadable`.
        """
        asker = _Asker(tenant_id, tier)
        speaking = self._speaking(dialect)
        if model == DEFAULT and (self._settings.default or DEFAULT) == DEFAULT:
            return Route(model, await self._first_of(asker, speaking))
        name = self._settings.default if model == DEFAULT and self._settings.default else model
        try:
            leaves = expanded(self._settings.aliases, name)
        except WrongName as error:  # the settings were checked: only by being built past the check
            raise Refusal(404, "model_not_found", f"the alias {_shown(name)} {error}") from error
        found = _found(speaking, leaves, self._providers)
        if not found and model == DEFAULT and any(served(self._providers, leaf) for leaf in leaves):
            # The default's provider speaks other dialects: the first that speaks this one gives its own.
            return Route(model, await self._first_of(asker, speaking))
        if not found:
            raise self._not_found(model, leaves, dialect)
        return Route(model, await self._usable(asker, model, found))

    async def models(self, *, tenant_id: TenantId, tier: str) -> list[Listed]:
        """Every name that this tenant may ask for: the default, aliases, and what each provider has. A provider that can't
        be asked for its models lists none; one whose own key is missing says so.
        """
        asker = _Asker(tenant_id, tier)
        rows: dict[str, Listed] = {}
        for name in (DEFAULT, *self._settings.aliases):
            if (row := await self._named(asker, name)) is not None:
                rows[name] = row
        listed = await asyncio.gather(*(self._models_of(asker, provider) for provider in self._providers))
        for provider, names in zip(self._providers, listed, strict=True):
            for model in names:
                name = model if self._is_plain(provider, model) and model not in rows else f"{provider.name}/{model}"
                one = _Found(provider, model, name)
                if name not in rows and self._may(asker, name, one):
                    rows[name] = await self._row(asker, name, [one], dialects_of(provider))
        return list(rows.values())

    def known(self, target: Target) -> Known:
        """What is known of a target's model."""
        return self._catalogue.find(target.provider.name, target.model)

    def _price(self, provider: str, model: str) -> Price | None:
        return self._catalogue.find(provider, model).price

    def forget_key(self, tenant_id: TenantId, provider: str) -> None:
        """The tenant's key for this provider is another one: what it could see is asked anew."""
        self._listings.forget(provider, tenant_id)

    # Which targets.

    def _speaking(self, dialect: DialectName) -> list[ModelProvider]:
        return [provider for provider in self._providers if dialect in dialects_of(provider)]

    def _is_plain(self, provider: ModelProvider, model: str) -> bool:
        """Whether a model's own name means this provider's, in every dialect that it speaks."""
        if model in self._settings.aliases:
            return False
        here = provider, model
        return all(served(self._speaking(one), model, self._providers) == here for one in dialects_of(provider))

    def _may(self, asker: _Asker, asked: str, one: _Found) -> bool:
        """By the name that was asked for, or by the one that it stands for."""
        patterns, others = self._settings.tiers.get(asker.tier), self._names - {one.provider.name}
        return any(may_ask(patterns, name, one.provider.name, one.model, others) for name in (asked, one.name))

    async def _usable(self, asker: _Asker, asked: str, found: Sequence[_Found]) -> tuple[Target, ...]:
        """Those of `found` that the tier may ask for and that a key is there for. Raises Refusal when none is."""
        allowed = [one for one in found if self._may(asker, asked, one)]
        if not allowed:
            detail = f"the tier {asker.tier} may not ask for the model {_shown(asked)}; GET /v1/models says what it may"
            raise Refusal(403, "model_not_allowed", detail)
        targets = []
        for provider, model, _ in allowed:
            key, is_own, is_missing = await self._key(asker, provider)
            if not is_missing:
                known = self._catalogue.find(provider.name, model)
                bounds = known.context_window, known.max_output_tokens
                price_of = partial(self._price, provider.name)
                targets.append(Target(provider, model, key, is_own, known.price, *bounds, price_of))
        if not targets:
            raise _key_required(allowed[0].provider)
        return tuple(targets)

    async def _first_of(self, asker: _Asker, speaking: Sequence[ModelProvider]) -> tuple[Target, ...]:
        """The default where none is configured for the dialect: the first model of the first provider that has one for
        this tenant.
        """
        refusal: Refusal | None = None
        for provider in speaking:
            try:
                return (await self._first_model(asker, provider),)
            except Refusal as refused:
                if refused.code not in {"model_not_allowed", "provider_key_required"}:
                    raise
                refusal = refusal or refused
        detail = "no model provider is configured that speaks this dialect"
        raise refusal or Refusal(404, "model_not_found", detail)

    async def _first_model(self, asker: _Asker, provider: ModelProvider) -> Target:
        models = list(provider.models) or await self._ask(asker, provider)
        if not models:
            detail = f"the provider {provider.name} lists no model; set models.default"
            raise Refusal(404, "model_not_found", detail)
        if not provider.models:  # a vendor lists all it has, in no order: what is known to converse comes first
            known = self._catalogue.first_of(provider.name, models)
            models = models if known is None else [known, *models]
        named = (model if self._is_plain(provider, model) else DEFAULT for model in models)
        found = [_Found(provider, model, name) for model, name in zip(models, named, strict=True)]
        return (await self._usable(asker, DEFAULT, found))[0]

    def _not_found(self, asked: str, leaves: Sequence[str], dialect: DialectName) -> Refusal:
        what = f"no provider serves a model {_shown(asked)}"
        if asked == DEFAULT:
            what = f"models.default is {_shown(str(self._settings.default))}, which no provider serves"
        elsewhere = [one[0] for leaf in leaves if (one := served(self._providers, leaf)) is not None]
        if elsewhere:
            spoken = ", ".join(dict.fromkeys(name for provider in elsewhere for name in dialects_of(provider)))
            what = f"the model {_shown(asked)} is not served in the dialect of this call ({dialect}), only in: {spoken}"
        return Refusal(404, "model_not_found", what)

    # With which key.

    async def _key(self, asker: _Asker, provider: ModelProvider) -> tuple[SecretStr | None, bool, bool]:
        """The key that goes out, whether it is the tenant's own, and whether only that would do and it is missing."""
        if provider.tenant_keys != "refused" and self._keys is not None:
            own = await self._keys.key_of(asker.tenant_id, provider.name)
            if own is not None:
                return own, True, False
        if provider.tenant_keys == "required":
            return None, False, True
        return provider.api_key, False, False

    async def _ask(self, asker: _Asker, provider: ModelProvider) -> list[str]:
        key, is_own, is_missing = await self._key(asker, provider)
        if is_missing:
            raise _key_required(provider)
        headers = headers_for(Target(provider, "", key, is_own), dialects_of(provider)[0])
        whose = provider.name, asker.tenant_id if is_own else ""
        return await self._listings.ask(whose, _url(provider, "/models"), headers)

    # What is listed.

    async def _models_of(self, asker: _Asker, provider: ModelProvider) -> Sequence[str]:
        try:
            await self._key(asker, provider)  # what nobody could ask for is not offered
            return provider.models or await self._ask(asker, provider)
        except Refusal:
            return ()

    async def _named(self, asker: _Asker, name: str) -> Listed | None:
        """The row of the default or an alias: what it stands for in the first dialect that it can be asked in."""
        found: dict[DialectName, Route] = {}
        refusal: Refusal | None = None
        for dialect in DIALECTS:
            try:
                found[dialect] = await self.route(
                    tenant_id=asker.tenant_id, tier=asker.tier, model=name, dialect=dialect
                )
            except Refusal as refused:
                refusal = refusal if refusal and refusal.code == "provider_key_required" else refused
        if found:
            targets = [_Found(one.provider, one.model, name) for one in next(iter(found.values())).targets]
            return await self._row(asker, name, targets, tuple(found))
        if refusal is None or refusal.code != "provider_key_required":
            return None
        leaves = expanded(self._settings.aliases, self._settings.default or name if name == DEFAULT else name)
        targets = [one for one in _found(self._providers, leaves, ()) if self._may(asker, name, one)]
        return await self._row(asker, name, targets, dialects_of(targets[0].provider)) if targets else None

    async def _row(
        self,
        asker: _Asker,
        name: str,
        targets: Sequence[_Found],
        dialects: tuple[DialectName, ...],
    ) -> Listed:
        provider, known = targets[0].provider, [self._catalogue.find(one.provider.name, one.model) for one in targets]
        _, is_own, is_missing = await self._key(asker, provider)
        return Listed(
            name=name,
            provider=provider.name,
            model=targets[0].model,
            targets=tuple(f"{one.provider.name}/{one.model}" for one in targets),
            dialects=dialects,
            known=_least(known),
            is_own_key=is_own,
            needs_own_key=is_missing,
        )


@dataclass(frozen=True, slots=True)
class _Asker:
    """For whom a name is resolved."""

    tenant_id: TenantId
    tier: str


class _Found(NamedTuple):
    """A model that a name stands for."""

    provider: ModelProvider
    model: str
    name: str  # by which it was found


def _found(
    providers: Sequence[ModelProvider], names: Iterable[str], everybody: Sequence[ModelProvider]
) -> list[_Found]:
    """What these names stand for, in order, nothing twice."""
    found: dict[tuple[str, str], _Found] = {}
    for name in names:
        if (one := served(providers, name, everybody)) is not None:
            found.setdefault((one[0].name, one[1]), _Found(*one, name))
    return list(found.values())


def _least(known: Sequence[Known]) -> Known:
    """The first's, with bounds that every target keeps: a session that is sized by it fits wherever a call ends up."""
    windows = [one.context_window for one in known if one.context_window is not None]
    outputs = [one.max_output_tokens for one in known if one.max_output_tokens is not None]
    return replace(known[0], context_window=min(windows, default=None), max_output_tokens=min(outputs, default=None))


def _key_required(provider: ModelProvider) -> Refusal:
    detail = (
        f"the provider {provider.name} is asked with your tenant's own key, and there is none; "
        "an admin sets it with POST /v1/provider-keys"
    )
    return Refusal(403, "provider_key_required", detail)


def _shown(name: str) -> str:
    return repr(name[:_MAX_NAME_SHOWN])
