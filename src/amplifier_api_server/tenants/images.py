"""What is known here of an image (`runtime.protocol.Image`, as JSON in rows): which trees it needs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def trees_of(image: Mapping[str, Any]) -> set[str]:
    """The content hashes of every tree of an image."""
    found = {image["root"]["tree"], *(source["tree"] for source in image.get("sources", []))}
    return found | ({image["packages"]} if image.get("packages") else set())
