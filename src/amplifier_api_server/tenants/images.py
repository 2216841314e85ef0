"""What is known here of an image (`runtime.protocol.Image`, as JSON in rows): which trees it needs. Pure.

Invariant: of what can't be read, every tree that is named there is taken for needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from amplifier_api_server.tenants.json_columns import Spoiled

_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def trees_of(image: Mapping[str, Any]) -> set[str]:
    """The content hashes of every tree of an image."""
    try:
        found = {image["root"]["tree"], *(source["tree"] for source in image.get("sources", []))}
        return found | ({image["packages"]} if image.get("packages") else set())
    except (KeyError, TypeError, AttributeError):
        return set(_HASH.findall(image.text if isinstance(image, Spoiled) else str(image)))


def trees_of_all(images: Iterable[Mapping[str, Any]]) -> set[str]:
    """Of a row's list of images."""
    if isinstance(images, Spoiled):
        return set(_HASH.findall(images.text))
    return {tree for image in images for tree in trees_of(image)}
