"""A page to try documents in: one file, made here, that needs nothing from anybody else.

Its policy lets in its own script and style, by their hashes, and nothing more: a name that a tenant made up and that the page
shows can't become a script. The key that a reader types stays in the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import Final

from amplifier_api_server.control_plane.kept_answers import KeptAnswer


@cache
def explorer() -> bytes:
    """The page."""
    return resources.files(__package__).joinpath("explorer.html").read_bytes()


def _hash_of(element: bytes) -> str:
    found = re.search(rb"<%b>(.*?)</%b>" % (element, element), explorer(), re.DOTALL)
    assert found is not None, "the page has one of each"
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"


_HEADERS: Final = {
    "content-security-policy": (
        f"default-src 'none'; script-src {_hash_of(b'script')}; style-src {_hash_of(b'style')}; connect-src 'self'; "
        "img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "referrer-policy": "no-referrer",
    "vary": "accept",
}


def kept_explorer() -> KeptAnswer:
    """The page, as it is answered."""
    return KeptAnswer(explorer(), "text/html", _HEADERS)
