"""Frames of a finished turn, from one on."""

from __future__ import annotations

import re


def frames_after(frames: bytes, request_id: str, after: int) -> bytes:
    """The part of a recorded stream that follows event number `after`.

    Numbers may have gaps where a sandbox was lost: the first higher one is where it goes on.
    """
    if after <= 0:
        return frames
    # A sandbox wrote this: only lines that name this turn cost a step, and no number is longer than a number.
    for found in re.finditer(rb"(?:\A|(?<=\n\n))id: " + re.escape(request_id.encode()) + rb":(\d{1,9})\n", frames):
        if int(found[1]) > after:
            return frames[found.start() :]
    return b""
