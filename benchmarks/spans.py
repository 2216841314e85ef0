"""Where a request's time goes: the server's own functions, timed from outside them.

Kept in the server's process and written when it ends; every timed call costs about a microsecond, which is in the figures.
"""

from __future__ import annotations

import functools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from amplifier_api_server.control_plane.limits.admission import Admission
from amplifier_api_server.control_plane.model_gateway.calls import ModelCall
from amplifier_api_server.control_plane.model_gateway.upstream import Upstream
from amplifier_api_server.control_plane.pods.reconciler import Reconciler
from amplifier_api_server.control_plane.router.pool import Pool
from amplifier_api_server.control_plane.sessions.service import Sessions
from amplifier_api_server.control_plane.sessions.settlement import Settlement
from amplifier_api_server.control_plane.sessions.turns import Turns

_TIMED: dict[str, tuple[type, str]] = {
    "read the session": (Sessions, "get"),
    "take the limits": (Admission, "take"),
    "record the turn": (Turns, "_record"),
    "runtime: request to head": (Pool, "request"),
    "model: request to head": (Upstream, "call"),
    "model call, whole": (ModelCall, "run"),
    "settle the turn": (Settlement, "settle"),
    "reconciler pass": (Reconciler, "run_pass"),
}


class Spans:
    """Seconds of every call, by name."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)
        for name, (owner, method) in _TIMED.items():
            setattr(owner, method, self._timed(name, getattr(owner, method)))

    def _timed(self, name: str, function: Any) -> Any:
        kept = self.seconds[name]

        @functools.wraps(function)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                kept.append(time.perf_counter() - begun)

        return timed

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.seconds), encoding="utf-8")


def read(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = json.loads(path.read_text(encoding="utf-8"))
    return {name: seconds for name, seconds in found.items() if seconds}
