"""Sending a message to an address that a tenant named, once; and when to try again.

Owns what an attempt came to, in words that a tenant may read. Refuses to know what is told, and to keep anything. Invariants:
it goes to a public address, or one that the operator named, which is checked as the connection is made; no redirect is
followed; of an answer only its status counts; nobody learns from it which names this network knows.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from amplifier_api_server.control_plane.clock import Clock
from amplifier_api_server.control_plane.egress.addresses import (
    EgressError,
    HostRules,
    NotAllowed,
    NotPublic,
    Place,
    Resolve,
    place_of,
    system_resolve,
)
from amplifier_api_server.control_plane.egress.client import Client, Patience
from amplifier_api_server.control_plane.webhooks.signing import headers_of

_OK = range(200, 300)
_GONE = 410  # Standard Webhooks, "Delivery": the receiver wants no more of it
_GROWTH = 4.0
_JITTER = 0.2
_MAX_DELAY_SECONDS = 6 * 3600.0
_MAX_PROBLEM_CHARS = 300


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent. The id is the same at every attempt, so that a receiver knows what it has had."""

    id: str
    body: bytes  # JSON
    secret: SecretStr | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """What an attempt came to: delivered where there is no problem."""

    problem: str = ""
    is_final: bool = False  # no other attempt would end otherwise
    retry_after_seconds: float | None = None  # as the receiver wants it

    @property
    def is_delivered(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to try again: each delay is four times the one before, give or take a fifth."""

    retries: int
    first_delay_seconds: float

    def delay_seconds(
        self, attempts: int, asked_seconds: float | None = None, spread: float | None = None
    ) -> float | None:
        """After so many attempts; None after the last. `spread` is between -1 and 1, by default random."""
        if attempts > self.retries:
            return None
        usual = min(self.first_delay_seconds * _GROWTH ** (attempts - 1), _MAX_DELAY_SECONDS)
        spread = random.uniform(-1, 1) if spread is None else spread  # noqa: S311 - no secret
        return max(usual * (1 + _JITTER * spread), min(asked_seconds or 0.0, _MAX_DELAY_SECONDS))


class Sender:
    """Sends within an operator's rules. `private_hosts` may be anywhere, and be spoken to without TLS."""

    def __init__(
        self,
        private_hosts: Sequence[str],
        context: Callable[[], ssl.SSLContext],
        clock: Clock,
        *,
        timeout_seconds: float,
        resolve: Resolve = system_resolve,
    ) -> None:
        self._rules = HostRules(private=private_hosts)
        self._client = Client(self._rules, context, resolve=resolve)
        self._clock = clock
        self._timeout_seconds = timeout_seconds

    def check(self, url: str) -> Place:
        """What can be said of an address before it is looked up. Raises NotAllowed."""
        place = place_of(url, schemes=("https", "http"))
        self._rules.check_unresolved(place.host, place.port)
        self._check_scheme(place)
        return place

    async def send(self, url: str, message: Message) -> Attempt:
        """One attempt. Raises nothing but what is a mistake of ours."""
        headers = headers_of(message.id, int(self._clock.now().timestamp()), message.body, message.secret)
        patience = Patience(connect_seconds=self._timeout_seconds, idle_seconds=self._timeout_seconds)
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                self._client.post(
                    url,
                    message.body,
                    schemes=("https", "http"),
                    headers={"Content-Type": "application/json", **headers},
                    patience=patience,
                    check=self._check_scheme,
                ) as answer,
            ):
                return _attempt_of(answer.status, answer.header("retry-after"))
        except TimeoutError:
            return Attempt(f"no answer within {self._timeout_seconds:g} s")
        except NotPublic:
            return Attempt("its host was not found at a public address")
        except NotAllowed as error:
            return Attempt(str(error)[:_MAX_PROBLEM_CHARS], is_final=True)
        except EgressError as error:
            return Attempt(str(error)[:_MAX_PROBLEM_CHARS])

    def _check_scheme(self, place: Place) -> None:
        if place.scheme != "https" and not self._rules.may_be_private(place.host, place.port):
            raise NotAllowed(f"{place.authority} should be asked by https://")


def _attempt_of(status: int, retry_after: str) -> Attempt:
    if status in _OK:
        return Attempt()
    asked = float(retry_after) if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 9 else None  # noqa: PLR2004
    return Attempt(f"it was answered with {status}", is_final=status == _GONE, retry_after_seconds=asked)
