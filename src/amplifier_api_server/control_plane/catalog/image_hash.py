"""What an image is called by: the hash of all that it is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import orjson

from amplifier_api_server.runtime.protocol import Image


def image_hash(image: Image) -> str:
    """The hash of its canonical JSON: the same hash is the same trees, of the same sources, for the same name."""
    return hashlib.sha256(orjson.dumps(image.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()


def key_of(images: Sequence[Image]) -> str:
    """What a runtime with this set of images is found by, in whatever order; empty for none."""
    if not images:
        return ""
    return hashlib.sha256("\n".join(sorted(map(image_hash, images))).encode()).hexdigest()[:32]
