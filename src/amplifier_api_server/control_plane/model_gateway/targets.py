"""What a model call is aimed at: one model of one provider, with the key that goes out and the price it has.

Owns the shapes that resolving (`providers`), trying (`resilience`) and calling (`calls`) share. Holds keys, and so is never
logged or shown. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import SecretStr

from amplifier_api_server.control_plane.settings import ModelProvider

# The dialects of calls, by the path that a client uses; which provider speaks which is `ModelProvider.dialect`'s to say.
DialectName = Literal["chat", "responses", "messages"]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens. None: not sold apart, so it costs what its kind costs."""

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One model of one provider."""

    provider: ModelProvider
    model: str
    key: SecretStr | None = field(default=None, repr=False)  # what goes out: the operator's, or the tenant's own
    is_own_key: bool = False
    price: Price | None = None


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
