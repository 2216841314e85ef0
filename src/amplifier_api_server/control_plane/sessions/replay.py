"""Frames of a finished turn, from one on."""

from __future__ import annotations


def frames_after(frames: bytes, request_id: str, after: int) -> bytes:
    """The part of a recorded stream that follows event number `after`.

    Numbers may have gaps where a sandbox was lost: the first higher one is where it goes on.
    """
    if after <= 0:
        return frames
    mark = f"id: {request_id}:".encode()
    at = 0
    while 0 <= at < len(frames):
        end = frames.find(b"\n", at)
        number = frames[at + len(mark) : end]
        if frames.startswith(mark, at) and number.isdigit() and int(number) > after:
            return frames[at:]
        following = frames.find(b"\n\n", at)
        if following < 0:
            break
        at = following + 2
    return b""
