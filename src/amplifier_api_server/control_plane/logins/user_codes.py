"""The codes of device logins: one that a device keeps, one that a person types. Pure.

A person's code has 34.5 bits (20^8; RFC 8628, 6.1): enough, because it is good for minutes and guesses are counted.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Final

_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"  # no vowel, so no word; nothing that looks like a digit
_CHARS: Final = 8
_GROUP: Final = 4


def new_user_code() -> str:
    """Such as WDJB-MJHT."""
    return grouped("".join(secrets.choice(_LETTERS) for _ in range(_CHARS)))


def new_device_code() -> str:
    return secrets.token_urlsafe(32)


def normal(typed: str) -> str | None:
    """What somebody typed, in its one form: case, spaces and dashes don't matter. None for what no code is like."""
    letters = "".join(char for char in typed[:64].upper() if char.isalnum())
    return grouped(letters) if len(letters) == _CHARS and all(char in _LETTERS for char in letters) else None


def grouped(letters: str) -> str:
    return f"{letters[:_GROUP]}-{letters[_GROUP:]}"


def digest_of(pepper: bytes, kind: str, code: str) -> bytes:
    """What is stored of a code. `kind` keeps the two apart."""
    return hmac.digest(pepper, f"{kind}\0{code}".encode(), "sha256")
