"""What sections of the configuration are made of: their base class, durations, sizes, names of hosts. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def parse_duration(value: Any) -> Any:
    """`30m`, `24h`, `250ms`, `1h30m`, or a number of seconds, as a timedelta; anything else is an error that says so."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return timedelta(seconds=value)
        if re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
            return timedelta(
                seconds=sum(float(n) * _UNITS[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h|d)", text))
            )
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return timedelta(seconds=float(text))
    except OverflowError as error:
        raise ValueError("should be a shorter duration") from error
    raise ValueError("should be a duration such as 30s, 30m or 24h")


def parse_size(value: Any) -> Any:
    """`512MiB`, `1GB`, or a number of bytes, as an int; anything else is an error that says so."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(value).strip().lower())
    if match and match[2] in _SIZES:
        return int(float(match[1]) * _SIZES[match[2]])
    raise ValueError("should be a size such as 512MiB or 1GB")


def named_hosts(value: tuple[str, ...]) -> tuple[str, ...]:
    """Hosts, or host:port, each by its own name. Raises ValueError."""
    for one in value:
        if not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]+)(:\d{1,5})?", one):
            raise ValueError(f"{one!r} should be a host, or host:port, without patterns")
    return value


def header_secret(value: SecretStr) -> SecretStr:
    """A secret that is sent in a header (RFC 9110, 5.5): files and shells leave white space around it. Raises ValueError."""
    text = value.get_secret_value().strip()
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("should be one word of visible ASCII characters")
    return SecretStr(text)


def client_secret(value: SecretStr) -> SecretStr:
    """A secret of an OAuth client (RFC 6749, A.2), which goes out encoded; without white space around. Raises ValueError."""
    text = value.get_secret_value().strip()
    if not re.fullmatch(r"[\x20-\x7e]+", text):
        raise ValueError("should be visible ASCII characters and spaces")
    return SecretStr(text)


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
NamedHosts = Annotated[tuple[str, ...], AfterValidator(named_hosts)]
HeaderSecret = Annotated[SecretStr, AfterValidator(header_secret)]
ClientSecret = Annotated[SecretStr, AfterValidator(client_secret)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]


class Section(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, given: Any) -> Any:
        """`true` is 1 to pydantic, and a slip of the pen where a number belongs."""
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and "bool" not in str(field.annotation):
                raise ValueError(f"{name} should not be {str(value).lower()}")
        return given
