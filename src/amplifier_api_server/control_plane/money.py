"""Amounts of money, as clients are told them. Inside they are whole microdollars, so that sums are exact."""

from __future__ import annotations

_MICRODOLLARS = 1_000_000


def dollars(microdollars: int | None) -> str | None:
    """US dollars as a decimal string with six places: a JSON number might be read as a float. None stays None."""
    if microdollars is None:
        return None
    whole, rest = divmod(abs(microdollars), _MICRODOLLARS)
    return f"{'-' if microdollars < 0 else ''}{whole}.{rest:06d}"
