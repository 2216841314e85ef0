"""A tenant's own lists of hosts: which of what the operator allows its tools may fetch. Pure.

Invariant: a list only narrows. What the operator refuses is refused whatever a tenant's list says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amplifier_api_server.control_plane.egress.addresses import NotAllowed, Place, is_pattern, matches
from amplifier_api_server.tenants.errors import Invalid
from amplifier_api_server.tenants.json_columns import is_spoiled

MAX_PATTERNS = 200  # in each list
EVERY_HOST = ("*",)


@dataclass(frozen=True, slots=True)
class WebPolicy:
    """Hosts that may be asked: those that match `allow` and do not match `deny`."""

    allow: tuple[str, ...] = EVERY_HOST
    deny: tuple[str, ...] = ()

    def check(self, place: Place) -> None:
        """Raises NotAllowed."""
        if matches(place.host, self.deny) or not matches(place.host, self.allow):
            raise NotAllowed(f"your tenant's lists do not allow {place.host}")

    def as_row(self) -> dict[str, Any]:
        """As it is stored: what adds nothing is nothing."""
        return {} if self == WebPolicy() else {"allow": list(self.allow), "deny": list(self.deny)}


def policy_in(row: Mapping[str, Any]) -> WebPolicy:
    """Of what is stored; lists that can't be read allow nothing."""
    if not row and not is_spoiled(row):
        return WebPolicy()
    allow, deny = row.get("allow"), row.get("deny")
    if (
        not isinstance(allow, list)
        or not isinstance(deny, list)
        or not all(isinstance(one, str) for one in allow + deny)
    ):
        return WebPolicy(allow=())
    return WebPolicy(tuple(allow), tuple(deny))


def policy_of(allow: Sequence[str], deny: Sequence[str]) -> WebPolicy:
    """Of what a caller sends. Raises Invalid that names each pattern that is none."""
    lists = {"allow": [one.strip().lower() for one in allow], "deny": [one.strip().lower() for one in deny]}
    message = "should be *, a host's name such as example.org, *.example.org for all below it, or an address"
    wrong = [(field, one) for field, patterns in lists.items() for one in patterns if not is_pattern(one)]
    if wrong:
        field, pattern = wrong[0]
        raise Invalid(
            f"{field}: {pattern[:100]!r} {message}", errors=[{"field": name, "message": message} for name, _ in wrong]
        )
    return WebPolicy(tuple(dict.fromkeys(lists["allow"])), tuple(dict.fromkeys(lists["deny"])))
