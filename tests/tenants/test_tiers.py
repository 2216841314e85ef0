"""The built-in tiers: who pays for more has more."""

from itertools import pairwise

import pytest

from amplifier_api_server.tenants.tiers import DEFAULT, LIMIT_NAMES, TIERS, overlaid_for_tenant

ORDER = ("free", "default", "pro", "enterprise")


@pytest.mark.parametrize("name", LIMIT_NAMES)
def test_no_tier_has_less_than_the_one_below(name):
    values = [getattr(overlaid_for_tenant(DEFAULT, TIERS[tier]), name) for tier in ORDER]
    for lower, higher in pairwise(values):
        assert higher is None or (lower is not None and lower <= higher)
    if name in ("sessions_per_user", "tenant_sessions", "tenant_concurrent_sessions"):
        assert values[1] < values[2] < values[3]
