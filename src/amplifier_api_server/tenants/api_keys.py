"""API keys as text: how one is made, told from a typo, and turned into what is stored. Pure, but for the randomness.

A key is `amp_live_`, 32 or more base62 characters of the system's random source, and 6 base62 characters of the CRC32
of all that precedes them: a mistyped or cut key is told without any I/O, and scanners can find leaked ones. The
checksum is no secret and proves nothing; what proves is the digest, an HMAC-SHA256 with the installation's pepper.
190 random bits need no slow hash, and a stolen table without the pepper can't even be tested against a guess.
"""

from __future__ import annotations

import hmac
import re
import zlib
from dataclasses import dataclass

from amplifier_api_server.tenants.ids import ALPHABET, random_base62

PREFIX = "amp_live_"
MIN_PEPPER_BYTES = 16
_SECRET_CHARS = 32
_CHECKSUM_CHARS = 6  # 62**6 is above 2**32
_HINT_CHARS = 4
_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_SECRET_CHARS + _CHECKSUM_CHARS},128}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key. The text is shown to its owner once and kept nowhere; it is left out of `repr`."""

    text: str
    hint: str  # its last characters, so that a person can tell keys apart

    def __repr__(self) -> str:
        return f"MintedKey(hint={self.hint!r})"


def mint() -> MintedKey:
    """A new key from the system's random source."""
    head = PREFIX + random_base62(_SECRET_CHARS)
    text = head + checksum(head)
    return MintedKey(text, hint_of(text))


def is_well_formed(text: str) -> bool:
    """Whether `text` has a key's shape and checksum: if not, no key was ever like this, and there is nothing to look
    up.
    """
    if _SHAPE.fullmatch(text) is None:
        return False
    return checksum(text[:-_CHECKSUM_CHARS]) == text[-_CHECKSUM_CHARS:]


def checksum(head: str) -> str:
    """Six base62 characters of the CRC32 of `head`, most significant first."""
    rest = zlib.crc32(head.encode("ascii"))
    found = ""
    for _ in range(_CHECKSUM_CHARS):
        rest, digit = divmod(rest, 62)
        found = ALPHABET[digit] + found
    return found


def digest(pepper: bytes, text: str) -> bytes:
    """The 32 bytes that are stored and looked up. `text` is well-formed; ValueError for a pepper too short to protect
    it.

    Looking up a digest takes no care about timing: what a comparison could leak is of an HMAC that nobody can choose.
    """
    if len(pepper) < MIN_PEPPER_BYTES:
        raise ValueError(f"the pepper has {len(pepper)} bytes; it should have at least {MIN_PEPPER_BYTES}")
    return hmac.digest(pepper, text.encode("ascii"), "sha256")


def hint_of(text: str) -> str:
    """What a list of keys may show of one."""
    return text[-_HINT_CHARS:]
