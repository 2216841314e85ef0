"""What a model call is aimed at: one model of one provider, with the key that goes out and the price it has.

Owns the shapes that resolving (`providers`), trying (`resilience`) and calling (`calls`) share, and what a count costs.
Holds keys, and so is never logged or shown. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from pydantic import SecretStr

from amplifier_api_server.control_plane import model_names
from amplifier_api_server.control_plane.settings import ModelProvider

DialectName = model_names.DialectName


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens. None: not sold apart, so it costs what its kind costs."""

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    cache_write_long: float | None = None  # what is kept for longer than usual (an hour); None: as `cache_write`
    above_prompt_tokens: int | None = None  # a request with a longer prompt costs `above`, all of it
    above: Price | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one provider."""

    provider: ModelProvider
    model: str
    key: SecretStr | None = field(default=None, repr=False)  # what goes out: the operator's, or the tenant's own
    is_own_key: bool = False
    price: Price | None = None
    context_window: int | None = None  # None: not known
    longest_answer: int | None = None  # None: not known
    price_of: Callable[[str], Price | None] | None = field(default=None, compare=False, repr=False)  # of another model


@dataclass(frozen=True, slots=True)
class Route:
    """Where a call may go, in order: the first target, then its fallbacks. All speak the dialect of the call."""

    asked: str  # the name that the sandbox used
    targets: tuple[Target, ...]  # never empty


@dataclass(frozen=True, slots=True)
class Counted:
    """A provider's own count of one answer. Cached and reasoning tokens are among the others, whatever the vendor does."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_long_tokens: int = (
        0  # of those written: what the provider keeps for longer than usual, at another price
    )


def cost_microdollars(counted: Counted, price: Price | None) -> int | None:
    """What a count costs at a price, in millionths of a US dollar; None where no price is known.

    Dollars a million tokens are microdollars a token. Each kind of token is charged at its own price: of the prompt, those
    read from the provider's cache and those written to it, then the rest; reasoning is part of the completion. The sum is
    exact, and rounded once to the nearest whole microdollar, half up. A provider that counts more cached tokens than it
    had in the prompt is believed as far as the prompt goes, so that no cost is negative.
    """
    if price is None:
        return None
    if price.above is not None and counted.prompt_tokens > (price.above_prompt_tokens or 0):
        price = price.above
    write = price.input if price.cache_write is None else price.cache_write
    cached = min(counted.cached_tokens, counted.prompt_tokens)
    written = min(counted.cache_write_tokens, counted.prompt_tokens - cached)
    long = min(counted.cache_write_long_tokens, written)
    parts = (
        (counted.prompt_tokens - cached - written, price.input),
        (cached, price.input if price.cached_input is None else price.cached_input),
        (written - long, write),
        (long, write if price.cache_write_long is None else price.cache_write_long),
        (counted.completion_tokens, price.output),
    )
    # A float's shortest text is what the operator wrote: Decimal(0.1) would be another number.
    exact = sum((tokens * Decimal(str(each)) for tokens, each in parts), Decimal(0))
    return int(exact.to_integral_value(rounding=ROUND_HALF_UP))
