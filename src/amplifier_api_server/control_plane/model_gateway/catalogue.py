"""What is known of models: how much they take, what they can do, what they cost.

Owns the file that ships (`models.yaml`) and the operator's own over it (`models.catalog`), both read once, at the start.
Invariant: nothing here decides whether a call is made; a model that is in no file can be asked for all the same, only its
price and its limits are not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from amplifier_api_server.control_plane.model_gateway.targets import Price
from amplifier_api_server.control_plane.settings import SettingsError
from amplifier_api_server.control_plane.wrong_settings import SingleKeys

_SHIPPED = Path(__file__).with_name("models.yaml")
_MAX_BYTES = 1024 * 1024
_MAX_PRICE = 100_000.0  # dollars a million tokens; above it somebody wrote another unit

Dollars = Annotated[float, Field(ge=0, le=_MAX_PRICE, allow_inf_nan=False, strict=True)]
Tokens = Annotated[int, Field(ge=1, le=2**40, strict=True)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rates(_Read):
    """US dollars for a million tokens. None: not sold apart, so it costs what its kind costs."""

    input: Dollars
    output: Dollars
    cached_input: Dollars | None = None
    cache_write: Dollars | None = None
    cache_write_long: Dollars | None = None  # what is kept for longer than usual, as an hour

    @property
    def price(self) -> Price:
        return Price(self.input, self.output, self.cached_input, self.cache_write, self.cache_write_long)


class LongRates(Rates):
    """What every token of a request costs whose prompt is longer than this."""

    prompt_tokens: Tokens


class ListPrice(Rates):
    """A price, where it was published, and when."""

    above: LongRates | None = None
    source: Annotated[str | None, Field(max_length=500)] = None
    as_of: date | None = None

    @property
    def price(self) -> Price:
        usual = super().price
        return (
            usual
            if self.above is None
            else replace(usual, above_prompt_tokens=self.above.prompt_tokens, above=self.above.price)
        )


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Entry(_Read):
    """What one line of a file says of the models that its patterns match; None: nothing."""

    models: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], BeforeValidator(_names), Field(min_length=1)
    ]
    context_window: Tokens | None = None
    max_output_tokens: Tokens | None = None
    images: bool | None = None
    tools: bool | None = None
    thinking: bool | None = None
    prompt_caching: bool | None = None
    price: ListPrice | None = None

    @model_validator(mode="after")
    def _fits(self) -> Entry:
        if self.context_window and self.max_output_tokens and self.max_output_tokens > self.context_window:
            raise ValueError("max_output_tokens is above context_window")
        return self

    def matches(self, provider: str, model: str) -> bool:
        names = (f"{provider}/{model}", model)
        return any(fnmatchcase(name, pattern) for pattern in self.models for name in names)


class _File(_Read):
    version: Annotated[int, Field(ge=1, le=1, strict=True)]
    models: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one model of one provider; None: nothing."""

    context_window: int | None = None
    max_output_tokens: int | None = None
    images: bool | None = None
    tools: bool | None = None
    thinking: bool | None = None
    prompt_caching: bool | None = None
    list_price: ListPrice | None = None

    @property
    def price(self) -> Price | None:
        return None if self.list_price is None else self.list_price.price


_FIELDS = ("context_window", "max_output_tokens", "images", "tools", "thinking", "prompt_caching")


class ModelCatalogue:
    """The entries of all files, the operator's before the shipped ones."""

    def __init__(self, files: Sequence[Sequence[Entry]]) -> None:
        self._files = tuple(files)

    def find(self, provider: str, model: str) -> Known:
        """Of each file the first entry that matches; what the operator's leaves out, the shipped one says. A price is taken
        whole or not at all.
        """
        found = [entry for entries in self._files if (entry := _first(entries, provider, model)) is not None]
        values = {name: _said(found, name) for name in _FIELDS}
        return Known(**values, list_price=_said(found, "price"))

    def first_of(self, provider: str, models: Sequence[str]) -> str | None:
        """The one of these models that comes first in the files; None where none of them is in one."""
        for entries in self._files:
            for entry in entries:
                if found := [model for model in models if entry.matches(provider, model)]:
                    return min(found, key=len)  # an alias of the vendor's before the same with a date
        return None


def _first(entries: Sequence[Entry], provider: str, model: str) -> Entry | None:
    return next((entry for entry in entries if entry.matches(provider, model)), None)


def _said(found: Sequence[Entry], name: str) -> Any:
    return next((value for entry in found if (value := getattr(entry, name)) is not None), None)


def load_catalogue(own: Path | None = None) -> ModelCatalogue:
    """The shipped file with the operator's over it. Raises SettingsError, naming the file and what is wrong in it."""
    files = [] if own is None else [_read(own)]
    return ModelCatalogue([*files, _read(_SHIPPED)])


def _read(path: Path) -> Sequence[Entry]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise SettingsError(f"models.catalog: {path} has more than {_MAX_BYTES} bytes")
        read = yaml.load(path.read_text(encoding="utf-8-sig"), SingleKeys)  # noqa: S506 - it is a SafeLoader
        return _File.model_validate(read).models
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"models.catalog: {path} can't be read as YAML: {error}") from error
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in one['loc']) or 'the file'}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)
        ]
        raise SettingsError(f"models.catalog: {path} is wrong\n  " + "\n  ".join(lines)) from error
