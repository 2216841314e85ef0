"""Every setting, read once, frozen. `docs/configuration.md` lists them; a test holds the two together.

Sources, the later wins: defaults here, config.yaml (`AMPLIFIER_CONFIG`, else ./config.yaml if there is one), environment
(`AMPLIFIER_` + section + `__` + name, as in AMPLIFIER_SESSIONS__IDLE_TIMEOUT=10m), and the few names that others
have given before us (PORT, DATA_DIR, OPENAI_API_KEY, OPENAI_BASE_URL, ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL). A wrong
value stops the start and says which and what it should be. Secrets are SecretStr and have no default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator, model_validator

from amplifier_api_server.control_plane.auth_settings import Auth, add_client_secrets
from amplifier_api_server.control_plane.client_addresses import parse_network
from amplifier_api_server.control_plane.graphql_settings import Graphql
from amplifier_api_server.control_plane.idempotency.settings import Idempotency
from amplifier_api_server.control_plane.model_names import wrong_names
from amplifier_api_server.control_plane.sections import (
    Duration,
    HeaderSecret,
    NamedHosts,
    Section,
    Size,
    parse_duration,
    parse_size,
)
from amplifier_api_server.control_plane.tenant_events.settings import Events
from amplifier_api_server.control_plane.websocket.settings import Websocket
from amplifier_api_server.control_plane.wrong_settings import SingleKeys, Sources, in_words
from amplifier_api_server.tenants.errors import DomainError
from amplifier_api_server.tenants.tiers import DEFAULT, TIERS, Limits, overlaid_for_tenant, parse_overrides

# The rest of the server has these from here.
__all__ = ["Auth", "Duration", "Section", "Settings", "SettingsError", "Size", "load", "parse_duration", "parse_size"]


class Server(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    data_dir: Path = Path(".data")
    drain_timeout: Duration = timedelta(seconds=30)  # how long SIGTERM lets running turns go on
    max_connections: int = Field(4096, ge=1)
    max_connections_per_address: int = Field(1024, ge=1)  # of one network, as client_addresses counts them
    max_streams_per_tenant: int = Field(1024, ge=1)  # streams and sockets open at once
    trusted_proxies: tuple[str, ...] = ()  # networks whose X-Forwarded-For is believed

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            parse_network(one)
        return value


class Api(Section):
    max_body: Size = 2 * 1024 * 1024
    max_collection: Size = 32 * 1024 * 1024  # of an uploaded archive
    max_import: Size = 32 * 1024 * 1024  # of a session's document
    max_path_chars: int = Field(2048, ge=64)
    page_size: int = Field(50, ge=1, le=1000)
    max_page_size: int = Field(200, ge=1, le=1000)
    body_timeout: Duration = timedelta(seconds=30)  # for a whole request body to arrive

    def page_limit(self, asked: int | None) -> int:
        """How many rows a page has, when `asked` for."""
        return min(asked or self.page_size, self.max_page_size)


def _checked_limits(value: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        parse_overrides(value, where=where)
    except DomainError as error:
        raise ValueError(error.detail) from error
    return value


class RateLimiting(Section):
    enabled: bool = True
    backend: Literal["memory"] = "memory"
    default: dict[str, Any] = Field({})  # over the built-in limits of every tier
    tiers: dict[str, dict[str, Any]] = Field({})  # over the built-in tiers; a new name is a new tier
    turn_reservation: int = Field(4096, ge=1)  # tokens set aside when a turn begins
    lease_ttl: Duration = timedelta(seconds=60)

    @field_validator("default")
    @classmethod
    def _default_is_limits(cls, value: dict[str, Any]) -> dict[str, Any]:
        return _checked_limits(value, "default")

    @field_validator("tiers")
    @classmethod
    def _tiers_are_limits(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {name: _checked_limits(one, name) for name, one in value.items()}


class SessionTimes(Section):
    """What a tier says differently."""

    idle_timeout: Duration | None = None
    max_duration: Duration | None = None


class Sessions(Section):
    max_per_user: int = Field(
        10, ge=1
    )  # limits' sessions_per_user, where no tier, tenant, member or key says otherwise
    idle_timeout: Duration = timedelta(minutes=30)
    max_duration: Duration = timedelta(hours=24)
    turn_timeout: Duration = timedelta(minutes=30)
    tool_timeout: Duration = timedelta(minutes=2)
    approval_timeout: Duration = timedelta(minutes=10)  # of a person who is asked for consent; then it is denied
    tiers: dict[str, SessionTimes] = Field({})


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Metrics(Section):
    enabled: bool = True
    endpoint: str = Field("/metrics", pattern=r"^/[a-z0-9/_-]+$")


class Cors(Section):
    allowed_origins: tuple[str, ...] = ()  # none until they are named
    allowed_methods: tuple[str, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
    allowed_headers: tuple[str, ...] = ("*",)  # besides the API's own

    @field_validator("allowed_headers")
    @classmethod
    def _are_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
                raise ValueError(f"{name!r} should be the name of a header such as traceparent, or *")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(f"{origin!r} should be an origin such as https://app.example.com, without a path")
        return value


class ModelProvider(Section):
    """An upstream, and the dialects that it speaks."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    dialect: Literal["openai", "anthropic"] = "openai"  # openai: chat completions and responses; anthropic: messages
    base_url: AnyHttpUrl
    api_key: HeaderSecret | None = None
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")  # the variable that holds it instead
    # How the key is sent; None: as the dialect's vendor wants it (Authorization: Bearer, or x-api-key). Azure: api-key.
    key_header: Literal["authorization", "x-api-key", "api-key"] | None = None
    query: dict[str, str] = Field({})  # added to every call's address (Azure's api-version)
    responses: bool = True  # of the openai dialect: it has /responses; where not, calls of it are refused
    tenant_keys: Literal["refused", "allowed", "required"] = "refused"  # a tenant's own key instead of the operator's
    models: tuple[str, ...] = ()  # names it serves; empty: whatever it is asked for
    extra_fields: tuple[str, ...] = ()  # patterns of request fields that pass beside the dialect's own
    continuous_usage: bool = False  # it takes stream_options.continuous_usage_stats (vLLM)


class Models(Section):
    providers: tuple[ModelProvider, ...] = ()  # empty, and no key in the environment: the demo serves
    default: str | None = None  # "provider/model" or "model"; without one, the first that the first provider lists
    aliases: dict[str, tuple[str, ...]] = Field(
        {}
    )  # a name -> what it stands for, in order: the later ones are fallbacks
    tiers: dict[str, tuple[str, ...]] = Field({})  # a tier -> patterns (*, ?) of models it may ask for; none named: all
    catalog: Path | None = None  # a YAML file of prices and capabilities, over the one that ships
    server_tools: tuple[str, ...] = ()  # patterns of tools that run at the provider and may be asked for
    retries: int = Field(2, ge=0, le=10)  # of one target, before the next one; never after bytes reached the sandbox
    retry_max_delay: Duration = timedelta(seconds=20)  # a longer Retry-After is passed on instead
    breaker_failures: int = Field(5, ge=1)  # in a row, after which a provider is left alone
    breaker_open: Duration = timedelta(seconds=30)  # for so long; then one call tries it
    connect_timeout: Duration = timedelta(seconds=10)
    idle_timeout: Duration = timedelta(seconds=120)  # between two bytes of an answer
    call_timeout: Duration = timedelta(minutes=15)
    max_request: Size = 8 * 1024 * 1024
    max_response: Size = 32 * 1024 * 1024
    max_concurrent_calls: int = Field(512, ge=1)  # of the whole process
    drain: Duration = timedelta(seconds=2)  # how long an abandoned stream is read on for its usage

    @model_validator(mode="after")
    def _names_stand_for_something(self) -> Models:
        names = [provider.name for provider in self.providers]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"providers: {twice[0]!r} is the name of two; each needs its own")
        if wrong := wrong_names(self.providers, self.aliases, self.default):
            raise ValueError("; ".join(f"{setting}: {message}" for setting, message in wrong))
        return self


class Collections(Section):
    """What collections may be made of, and from where."""

    hosts: tuple[str, ...] = ("*",)  # patterns of hosts that may be asked
    denied_hosts: tuple[str, ...] = ()
    private_hosts: NamedHosts = ()  # host or host:port; named ones may be at addresses that are not public
    mirrors: dict[str, str] = Field(
        {}
    )  # an address's beginning -> what stands there instead; file:// is for these alone
    ca_file: Path | None = None  # certificates to trust beside the system's
    modules: Literal["own", "source"] = "own"  # which one, where a bundle's source has an id that we have a module for
    max_sources: int = Field(128, ge=1, le=256)  # repositories and archives of one collection
    max_size: Size = 512 * 1024**2  # of all its files and folders, at least 4 KiB each
    max_files: int = Field(50_000, ge=1)  # and folders
    max_wheels: int = Field(256, ge=0)
    fetch_timeout: Duration = timedelta(minutes=2)  # of one source
    install_timeout: Duration = timedelta(minutes=15)
    wait: Duration = timedelta(seconds=5)  # a request waits so long for its end, then is answered with 202
    max_installations: int = Field(2, ge=1)  # at once; one of each tenant
    wheel_index: AnyHttpUrl | None = None  # where wheels come from; None: as pip is configured

    @field_validator("mirrors")
    @classmethod
    def _mirrors_lead_somewhere(cls, value: dict[str, str]) -> dict[str, str]:
        for beginning, target in value.items():
            if not re.match(r"[a-z][a-z0-9+.-]*://[^\s/]", beginning):
                raise ValueError(f"{beginning!r} should be an address's beginning, such as https://github.com/org/")
            if not re.match(r"(https?://[^\s/@]+(/|$)|file:///)", target):
                raise ValueError(f"{target!r} should be an https, http or file:/// address, without credentials")
        return value


class Web(Section):
    """What tools may fetch from the public web, by way of this server."""

    enabled: bool = True
    allow: tuple[str, ...] = ("*",)  # patterns of hosts; a tenant's own list narrows it
    deny: tuple[str, ...] = ()
    private_hosts: NamedHosts = ()  # host or host:port; named ones may be at addresses that are not public
    max_response: Size = 5 * 1024**2
    timeout: Duration = timedelta(seconds=30)  # of one page, redirects included
    max_redirects: int = Field(5, ge=0, le=20)
    max_concurrent: int = Field(64, ge=1)  # of the whole process


class Callbacks(Section):
    """POSTs that callers want when their executions have ended."""

    enabled: bool = True
    timeout: Duration = timedelta(seconds=10)  # of one attempt, all of it
    retries: int = Field(5, ge=0, le=20)  # after the first attempt
    retry_delay: Duration = timedelta(seconds=10)  # before the first retry; four times as long before each further one
    private_hosts: NamedHosts = ()  # host or host:port; these may be at addresses that are not public, and http
    max_concurrent: int = Field(32, ge=1)  # of the whole process


class Secrets(Section):
    encryption_key: SecretStr | None = (
        None  # of what is stored encrypted; embedded mode makes one and keeps it in data_dir
    )


class Sandbox(Section):
    mode: Literal["bubblewrap", "none"] = "bubblewrap"  # none is --unsafe-no-sandbox
    cgroups: Literal["auto", "never", "required"] = "auto"
    warm: int = Field(2, ge=0, le=64)  # runtimes kept ready for the next tenant
    max_runtimes: int = Field(1024, ge=1)
    max_sessions_per_runtime: int = Field(64, ge=1)
    start_timeout: Duration = timedelta(seconds=20)
    idle_timeout: Duration = timedelta(minutes=5)  # a claimed runtime without sessions ends after this
    memory: Size = 1024**3
    processes: int = Field(256, ge=8)
    files: int = Field(1024, ge=64)
    file_size: Size = 256 * 1024**2
    workspace: Size = 2 * 1024**3  # of all sessions in one runtime
    tmp: Size = 64 * 1024**2
    cpu_seconds_per_tool: int = Field(600, ge=1)
    min_free_disk: Size = 1024**3  # below it tenants' requests that write are refused, and what grows is ended
    min_free_files: int = Field(16_384, ge=0)  # the same of files and folders that the file system can still make
    first_uid: int = Field(20_001, ge=1000, le=2**31)  # where the server is root: each runtime gets a uid from here on


_SHORT = {
    "PORT": ("server", "port"),
    "DATA_DIR": ("server", "data_dir"),
}


class Settings(Section):
    """The whole configuration. Build it with `load()`, which knows the sources and turns errors into sentences."""

    server: Server = Server()
    api: Api = Api()
    auth: Auth = Auth()
    rate_limiting: RateLimiting = RateLimiting()
    sessions: Sessions = Sessions()
    logging: Logging = Logging()
    metrics: Metrics = Metrics()
    cors: Cors = Cors()
    websocket: Websocket = Websocket()
    graphql: Graphql = Graphql()
    models: Models = Models()
    sandbox: Sandbox = Sandbox()
    collections: Collections = Collections()
    web: Web = Web()
    callbacks: Callbacks = Callbacks()
    events: Events = Events()
    idempotency: Idempotency = Idempotency()
    secrets: Secrets = Secrets()

    @model_validator(mode="after")
    def _tiers_exist(self) -> Settings:
        """A mistyped tier would quietly be one that may ask for every model."""
        for tier in self.models.tiers:
            if tier not in TIERS and tier not in self.rate_limiting.tiers:
                known = ", ".join(dict.fromkeys([*TIERS, *self.rate_limiting.tiers]))
                raise ValueError(f"models.tiers.{tier}: there is no such tier; there are {known}")
        for login in self.auth.logins:
            if login.signup != "refused" and self.limits_of(login.signup_tier) is None:
                raise ValueError(f"auth.methods: signup_tier: there is no tier {login.signup_tier!r}")
        return self

    @property
    def database_url(self) -> str:
        """Where the rows are: in embedded mode, a file in the data folder."""
        return f"sqlite+aiosqlite:///{self.server.data_dir.absolute() / 'amplifier.db'}"

    def limits_of(self, tier: str) -> Limits | None:
        """A tier's limits: built-in default, configured default, built-in tier, configured tier. None: no such tier."""
        rates = self.rate_limiting
        if tier not in TIERS and tier not in rates.tiers:
            return None
        default = {"sessions_per_user": self.sessions.max_per_user} | parse_overrides(rates.default)
        return overlaid_for_tenant(DEFAULT, default, TIERS.get(tier, {}), parse_overrides(rates.tiers.get(tier, {})))


class SettingsError(Exception):
    """The configuration is wrong; the message names each setting and what it should be."""


def load(
    path: Path | None = None, environ: Mapping[str, str] | None = None, **overrides: Mapping[str, Any]
) -> Settings:
    """The settings of this process. `overrides` (section -> name -> value) beat every source: the command line's.

    Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ["AMPLIFIER_CONFIG"]) if environ.get("AMPLIFIER_CONFIG") else None)
    path = named or Path("config.yaml")
    in_file = _read_yaml(path, must_exist=named is not None)
    values = dict(in_file)
    for variable, (section, name) in _SHORT.items():
        if environ.get(variable):
            values = _merged(values, {section: {name: environ[variable]}})
    _add_vendors(values, environ)
    values = _merged(values, _from_environment(environ))
    values = _merged(values, {section: dict(given) for section, given in overrides.items()})
    _add_provider_keys(values, environ)
    if wrong := add_client_secrets(values.get("auth"), environ):
        raise SettingsError(wrong)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        sources = Sources(str(path), in_file, _variables(environ))
        raise SettingsError(in_words(error, Settings, sources)) from error


def _read_yaml(path: Path, *, must_exist: bool) -> dict[str, Any]:
    if not path.exists():
        if must_exist:
            raise SettingsError(f"the configuration file {path} does not exist")
        return {}
    try:
        read = yaml.load(path.read_text(encoding="utf-8-sig"), SingleKeys) or {}  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(v, dict) for v in read.values()):
        raise SettingsError(f"{path} should be a mapping of sections ({', '.join(Settings.model_fields)}) to mappings")
    return read


_VENDORS = {
    # name and dialect: the variables of its key and address, and the address without one
    "openai": ("OPENAI_API_KEY", "OPENAI_BASE_URL", "https://api.openai.com/v1"),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
}


def _add_vendors(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """OPENAI_* and ANTHROPIC_* make providers, unless the file names providers of its own."""
    models = values["models"] = dict(values.get("models", {}))
    if models.get("providers"):
        return
    found = []
    for vendor, (key, address, usual) in _VENDORS.items():
        if environ.get(key) or environ.get(address):
            provider = {"name": vendor, "dialect": vendor, "base_url": environ.get(address) or usual}
            if vendor == "anthropic":  # the vendor's SDKs want the address without /v1, a provider here has it
                provider["base_url"] = provider["base_url"].rstrip("/").removesuffix("/v1") + "/v1"
            if environ.get(key):
                provider["api_key"] = environ[key]
            found.append(provider)
    if found:
        models["providers"] = found


def _add_provider_keys(values: dict[str, Any], environ: Mapping[str, str]) -> None:
    """A key that a provider names by its variable, so that no file has to hold it."""
    providers = values.get("models", {}).get("providers")
    for place, provider in enumerate(providers if isinstance(providers, (list, tuple)) else ()):
        variable = provider.get("api_key_env") if isinstance(provider, dict) else None
        if isinstance(variable, str):
            if not environ.get(variable):
                raise SettingsError(f"models.providers.{place}.api_key_env: the variable {variable} is not set")
            provider["api_key"] = environ[variable]


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """AMPLIFIER_SECTION__NAME. Text is text, whatever it looks like; all else is YAML: so a list is [a, b]."""
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        section, _, name = variable.removeprefix("AMPLIFIER_").lower().partition("__")
        if variable.startswith("AMPLIFIER_") and name:
            if section not in Settings.model_fields:
                raise SettingsError(
                    f"{variable}: there is no section {section!r}; there are {', '.join(Settings.model_fields)}"
                )
            path = [section, *name.split("__")]
            here = found
            for parent in path[:-1]:
                here = here.setdefault(parent, {})
            try:
                here[path[-1]] = text if _is_text(path) else yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise SettingsError(f"{variable} can't be read as a YAML value: {error}") from error
    return found


def _variables(environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """The variable that says a setting, by the setting's path."""
    long = {
        tuple(one.removeprefix("AMPLIFIER_").lower().split("__")): one
        for one in environ
        if one.startswith("AMPLIFIER_") and "__" in one
    }
    return {path: variable for variable, path in _SHORT.items() if environ.get(variable)} | long


def _is_text(path: Sequence[str]) -> bool:
    """Whether the setting there is text alone: a number that is meant as text, such as a secret of digits, stays text."""
    kind: Any = Settings
    for name in path:
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return False
        kind = fields[name].annotation
    kinds = get_args(kind) if get_origin(kind) in (Literal, Union, UnionType) else (kind,)
    return all(one in (str, SecretStr, Path, NoneType) or isinstance(one, str) for one in map(_bare, kinds))


def _bare(kind: Any) -> Any:
    """A type without what is annotated on it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for name, value in over.items():
        out[name] = (
            _merged(out[name], value) if isinstance(value, Mapping) and isinstance(out.get(name), dict) else value
        )
    return out
