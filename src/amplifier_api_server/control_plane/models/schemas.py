"""What GET /v1/models gives."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import Field

from amplifier_api_server.control_plane.model_gateway.catalogue import ListPrice, Rates
from amplifier_api_server.control_plane.model_gateway.providers import Listed
from amplifier_api_server.control_plane.model_names import DialectName
from amplifier_api_server.control_plane.schemas import Answer


class RatesView(Answer):
    """US dollars for a million tokens; null: what its kind costs."""

    input: float
    output: float
    cached_input: Annotated[float | None, Field(description="of the prompt: read from the provider's cache")]
    cache_write: Annotated[float | None, Field(description="of the prompt: written to it")]
    cache_write_long: Annotated[float | None, Field(description="of those: kept for longer than usual")]

    @classmethod
    def of(cls, rates: Rates) -> RatesView:
        return cls.model_validate(rates.model_dump(include=set(RatesView.model_fields)))


class LongRatesView(RatesView):
    prompt_tokens: Annotated[int, Field(description="a request with a longer prompt costs this, all of it")]


class PriceView(RatesView):
    above: LongRatesView | None
    source: Annotated[str | None, Field(description="where it was published")]
    as_of: Annotated[date | None, Field(description="and when it was read there")]

    @classmethod
    def of_price(cls, price: ListPrice) -> PriceView:
        return cls.model_validate(price.model_dump())


class ModelView(Answer):
    """A name that can be asked for. What is not known is null."""

    name: Annotated[str, Field(description='a profile names it as its model; "default" is what others get')]
    is_alias: Annotated[bool, Field(description="the name is this server's, not the provider's")]
    provider: str
    targets: Annotated[list[str], Field(description='"provider/model" in the order in which they are tried')]
    dialects: Annotated[list[DialectName], Field(description="in which it can be asked for")]
    context_window: Annotated[int | None, Field(description="in tokens; of several targets, the least")]
    max_output_tokens: Annotated[int | None, Field(description="of one answer; of several targets, the least")]
    images: bool | None
    tools: bool | None
    thinking: bool | None
    prompt_caching: bool | None
    price: Annotated[PriceView | None, Field(description="of the first target")]
    uses_own_key: Annotated[bool, Field(description="the first target is asked with your tenant's own key")]
    needs_own_key: Annotated[
        bool, Field(description="your tenant has to set its own key first: POST /v1/provider-keys")
    ]

    @classmethod
    def of(cls, found: Listed) -> ModelView:
        known = found.known
        return cls(
            name=found.name,
            is_alias=found.is_alias,
            provider=found.provider,
            targets=list(found.targets),
            dialects=list(found.dialects),
            context_window=known.context_window,
            max_output_tokens=known.max_output_tokens,
            images=known.images,
            tools=known.tools,
            thinking=known.thinking,
            prompt_caching=known.prompt_caching,
            price=None if found.price is None else PriceView.of_price(found.price),
            uses_own_key=found.is_own_key,
            needs_own_key=found.needs_own_key,
        )


class ModelPage(Answer):
    models: list[ModelView]
    next_cursor: str | None = None
