"""Which moves are legal; the tables are what `docs/lifecycle.md` tells."""

from itertools import product

import pytest

from amplifier_api_server.tenants.lifecycle import (
    RuntimeStatus,
    SessionStatus,
    require_runtime_move,
    require_session_move,
)


@pytest.mark.parametrize("new", [status for status in SessionStatus if status is not SessionStatus.CLOSED])
def test_nothing_comes_back_from_closed(new):
    with pytest.raises(ValueError, match="closed"):
        require_session_move([SessionStatus.ACTIVE, SessionStatus.CLOSED], new)


@pytest.mark.parametrize("old", list(SessionStatus))
def test_every_session_can_be_closed(old):
    require_session_move([old], SessionStatus.CLOSED)


@pytest.mark.parametrize("old", list(RuntimeStatus))
def test_every_runtime_can_be_gone(old):
    require_runtime_move([old], RuntimeStatus.GONE)


def test_a_claimed_runtime_is_nobody_elses_again():
    for old, new in product(
        [RuntimeStatus.CLAIMED, RuntimeStatus.DRAINING, RuntimeStatus.UNREACHABLE, RuntimeStatus.GONE],
        [RuntimeStatus.STARTING, RuntimeStatus.WARM],
    ):
        with pytest.raises(ValueError, match="nothing goes from"):
            require_runtime_move([old], new)
