"""The `auth` section: how callers may say who they are, and whom we believe about it.

Owns the shape of `auth.methods`, and the rule about addresses: https, or a host that is near. Refuses algorithms that
prove nothing (`none`) or that would make every verifier a signer (HS*): they can't even be named.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from amplifier_api_server.control_plane.login_settings import LoginTimes
from amplifier_api_server.control_plane.sections import ClientSecret, Duration, NamedHosts, Section
from amplifier_api_server.tenants.permissions import Role

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]

_MAX_LEEWAY: Final = timedelta(minutes=5)
_SHORTEST_TTL: Final = timedelta(seconds=10)  # an issuer is not asked more often than that
_DOTTED = r"^[^.\s]+(\.[^.\s]+)*$"
_GITHUB: Final = {
    "authorize_url": "https://github.com/login/oauth/authorize",
    "token_url": "https://github.com/login/oauth/access_token",
    "api_url": "https://api.github.com",
}


class ApiKeyAuth(Section):
    """API keys, in a header of their own and as `Authorization: Bearer`."""

    type: Literal["api_key"] = "api_key"
    header: str = Field("X-API-Key", pattern=r"^[A-Za-z0-9-]{1,64}$")

    @field_validator("header")
    @classmethod
    def _is_free(cls, value: str) -> str:
        if value.lower() in ("authorization", "cookie", "host", "content-type", "content-length"):
            raise ValueError(f"{value} has a meaning of its own; choose another name")
        return value


class Claims(Section):
    """Which claim of a token says what. A path such as `realm_access.roles` leads into objects."""

    tenant: str = Field("tenant_id", pattern=_DOTTED)
    tenant_map: dict[str, str] = Field({})  # the claim's value -> a tenant's id; other values are refused
    default_tenant: str | None = Field(
        None, min_length=1
    )  # of a token without the claim; without a map, of every token
    any_tenant: bool = (
        False  # the claim's value is a tenant's id, and may be any; as it is of a single issuer with neither
    )
    # None: roles are kept here, with the member. Otherwise the issuer decides, at every token anew.
    roles: str | None = Field("roles", pattern=_DOTTED)
    role_map: dict[str, str] = Field({})  # a role there -> a role here; empty: they have the same names
    default_role: str | None = None  # of a token without a role that is known here
    name: str = Field("name", pattern=_DOTTED)
    email: str = Field("email", pattern=_DOTTED)

    @model_validator(mode="after")
    def _nobody_becomes_operator(self) -> Claims:
        if Role.OPERATOR.value in (*self.role_map.values(), self.default_role):
            raise ValueError("a token is always a tenant's: no claim leads to the operator's role")
        if self.any_tenant and self.tenant_map:
            raise ValueError("claims: any_tenant and tenant_map contradict each other; leave one out")
        return self

    @property
    def bound_to(self) -> Mapping[str, str] | None:
        """Which tenants its issuer speaks for, by the claim's value; None where it may name any."""
        if self.tenant_map:
            return self.tenant_map
        if self.any_tenant or self.default_tenant is None:
            return None
        return {self.default_tenant: self.default_tenant}


class BearerAuth(Section):
    """JWTs of one issuer (RFC 7519), taken as RFC 8725 and RFC 9068 say."""

    type: Literal["bearer"] = "bearer"
    issuer: str  # as it stands in `iss`, character by character
    audience: tuple[str, ...] = Field(min_length=1)  # one of them has to be in `aud`
    jwks_url: str | None = None  # None: as the issuer's /.well-known/openid-configuration says
    jwks_ttl: Duration = timedelta(minutes=10)  # how late a key that the issuer withdrew can be noticed
    jwks_stale: Duration = timedelta(hours=24)  # how long keys go on being good while the issuer doesn't answer
    algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256", "EdDSA", "PS256"), min_length=1)
    token_types: tuple[str, ...] = ("at+jwt", "JWT")  # `typ`; a token without one counts as JWT
    leeway: Duration = timedelta(seconds=30)  # how far the issuer's clock may be from ours
    claims: Claims = Claims()
    provision: bool = True  # somebody who is no member yet becomes one

    @field_validator("audience", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("leeway")
    @classmethod
    def _is_small(cls, value: timedelta) -> timedelta:
        if not timedelta(0) <= value <= _MAX_LEEWAY:
            raise ValueError("should be between 0s and 5m")
        return value

    @model_validator(mode="after")
    def _stale_is_after_fresh(self) -> BearerAuth:
        if not _SHORTEST_TTL <= self.jwks_ttl <= self.jwks_stale:
            raise ValueError("jwks_ttl should be at least 10s and at most jwks_stale")
        if self.claims.roles is None and self.provision and self.claims.default_role is None:
            raise ValueError(
                "claims.default_role: where no claim says the role, a new member needs one; or set provision: false"
            )
        return self

    def urls(self) -> Mapping[str, str]:
        """What is fetched, by the setting that names it."""
        return {"issuer": self.issuer} | ({"jwks_url": self.jwks_url} if self.jwks_url else {})


class OAuth2Auth(Section):
    """A login in the browser, by GitHub or by any OpenID Connect provider."""

    type: Literal["oauth2"] = "oauth2"
    provider: Literal["github", "oidc"]
    name: str = Field(
        "", pattern=r"^([a-z0-9][a-z0-9-]{0,31})?$"
    )  # in addresses, /auth/login/{name}; "": as `provider`
    label: str = ""  # what people read; "": the name
    issuer: str | None = None  # oidc: what its discovery document and its ID tokens say
    client_id: str | None = None  # None: the variable {NAME}_CLIENT_ID
    client_secret: ClientSecret | None = None
    client_secret_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")  # None: {NAME}_CLIENT_SECRET
    token_auth: Literal["client_secret_basic", "client_secret_post", "none"] = "client_secret_basic"  # noqa: S105
    scopes: tuple[str, ...] = ()  # empty: openid, profile and email; of GitHub read:user and user:email
    authorize_url: str | None = None  # None: GitHub's own, or as the discovery document says
    token_url: str | None = None
    api_url: str | None = None  # GitHub's: where a person's profile and addresses are asked for
    signup: Literal["refused", "tenant"] = "refused"  # of somebody who is no member anywhere: tenant makes them one
    signup_tier: str = "free"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        usual: dict[str, Any] = {"name": given.get("provider", "")}
        if given.get("provider") == "github":
            usual |= _GITHUB | {"label": "GitHub"}
        return {**given, **{name: value for name, value in usual.items() if not given.get(name)}}

    @model_validator(mode="after")
    def _fits_its_provider(self) -> OAuth2Auth:
        if self.provider == "oidc" and not self.issuer:
            raise ValueError("issuer: an OpenID Connect provider is known by its issuer; name it")
        if self.provider == "oidc" and self.scopes and "openid" not in self.scopes:
            raise ValueError("scopes: should have openid, or the provider gives no ID token")
        return self

    @property
    def identity_provider(self) -> str:
        """What `Identity.provider` holds of people who log in by it: the same issuer's tokens are the same people."""
        return self.issuer or ("github" if self.api_url == _GITHUB["api_url"] else f"github:{self.api_url}")

    @property
    def wanted_scopes(self) -> tuple[str, ...]:
        if self.scopes:
            return self.scopes
        return ("read:user", "user:email") if self.provider == "github" else ("openid", "profile", "email")

    @property
    def is_complete(self) -> bool:
        """Whether somebody could log in by it: it has its client's id, and the secret unless it needs none."""
        needs_secret = self.token_auth != "none"  # noqa: S105
        return bool(self.client_id) and (not needs_secret or self.client_secret is not None)

    def urls(self) -> Mapping[str, str]:
        """What is asked, by the setting that names it."""
        named = {name: getattr(self, name) for name in ("issuer", "authorize_url", "token_url", "api_url")}
        return {name: url for name, url in named.items() if url}


AuthMethod = Annotated[ApiKeyAuth | BearerAuth | OAuth2Auth, Field(discriminator="type")]


class Auth(Section):
    methods: tuple[AuthMethod, ...] = (ApiKeyAuth(),)
    key_pepper: SecretStr | None = None  # of the keys' HMAC; embedded mode makes one and keeps it in data_dir
    cache_ttl: Duration = timedelta(seconds=1)  # how late a revocation made elsewhere can be noticed
    private_hosts: NamedHosts = ()  # host or host:port; issuers there may be asked by http
    ca_file: Path | None = None  # certificates to trust beside the system's, of issuers and providers
    login: LoginTimes = LoginTimes()

    @model_validator(mode="after")
    def _methods_agree(self) -> Auth:
        for method in self._asking:
            for setting, url in method.urls().items():
                check_url(url, f"methods: {setting}", self.private_hosts)
        for what, names in (
            ("issuer", [one.issuer for one in self.bearers]),
            ("name", [one.name for one in self.logins]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"methods: {twice[0]!r} is the {what} of two; each needs its own")
        unbound = [one.issuer for one in self.bearers if one.claims.bound_to is None and not one.claims.any_tenant]
        if len(unbound) > 1:
            raise ValueError(
                f"methods: the issuers {' and '.join(unbound)} would each speak for every tenant. Say which tenants each "
                "speaks for (claims.tenant_map, claims.default_tenant), or that it is trusted with all (claims.any_tenant)"
            )
        return self

    @property
    def keys(self) -> tuple[ApiKeyAuth, ...]:
        return tuple(one for one in self.methods if isinstance(one, ApiKeyAuth))

    @property
    def bearers(self) -> tuple[BearerAuth, ...]:
        return tuple(one for one in self.methods if isinstance(one, BearerAuth))

    @property
    def logins(self) -> tuple[OAuth2Auth, ...]:
        return tuple(one for one in self.methods if isinstance(one, OAuth2Auth))

    @property
    def _asking(self) -> list[BearerAuth | OAuth2Auth]:
        """Those that somebody else is asked about."""
        return [*self.bearers, *self.logins]

    @property
    def named_hosts(self) -> tuple[str, ...]:
        """host:port of every address that the operator wrote down: those may be at addresses that are not public."""
        found = [url for method in self._asking for url in method.urls().values()]
        return (*self.private_hosts, *dict.fromkeys(map(_authority, found)))


def check_url(url: str, where: str, private_hosts: tuple[str, ...] = ()) -> None:
    """Raise ValueError where an address is not one that may be asked who somebody is.

    http can be read and changed on its way: it is for hosts that are this machine, have a private address for a name, or were
    named in `auth.private_hosts`.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"{where}: {url!r} is not an address: {error}") from error
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc or re.search(r"[\s#?\\]", url):
        raise ValueError(f"{where}: {url!r} should be an https address, without credentials, query and fragment")
    named = {one.lower() for one in private_hosts}
    if parts.scheme == "http" and not (_is_near(host) or host in named or f"{host}:{port or 80}" in named):
        raise ValueError(f"{where}: {url!r} should be an https address; or name its host in auth.private_hosts")


def _is_near(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private


def _authority(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def add_client_secrets(auth: Any, environ: Mapping[str, str]) -> str | None:
    """Fill in, in the section as it was read, what OAuth clients have in the environment. What is wrong, or None."""
    methods = auth.get("methods") if isinstance(auth, dict) else None
    for place, method in enumerate(methods if isinstance(methods, (list, tuple)) else ()):
        if not isinstance(method, dict) or method.get("type") != "oauth2":
            continue
        prefix = str(method.get("name") or method.get("provider") or "").upper().replace("-", "_")
        if not method.get("client_id") and environ.get(f"{prefix}_CLIENT_ID"):
            method["client_id"] = environ[f"{prefix}_CLIENT_ID"]
        variable = method.get("client_secret_env")
        if isinstance(variable, str) and not environ.get(variable):
            return f"auth.methods.{place}.client_secret_env: the variable {variable} is not set"
        secret = environ.get(variable if isinstance(variable, str) else f"{prefix}_CLIENT_SECRET")
        if secret and not method.get("client_secret"):
            method["client_secret"] = secret
    return None
