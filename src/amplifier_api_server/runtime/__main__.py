"""The runtime as a program: `python -m amplifier_api_server.runtime`, with what the launcher set in `Environment`.

Listens on the descriptor that it was handed, answers until SIGTERM. Logs to standard error; standard output is
nobody's.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

PR_SET_DUMPABLE = 4  # linux/prctl.h


def _close_to_others() -> None:
    """First of all: a tool of the same uid must not read this process's memory or descriptors."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def main() -> int:
    _close_to_others()
    gc.disable()  # what imports make stays; collecting among it took 15 ms of the start
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = (
        "__all__"  # none is wanted, and looking for them reads every package's metadata
    )
    from amplifier_api_server.runtime.memory import limit_arenas
    from amplifier_api_server.runtime.serving import serve

    limit_arenas()
    gc.freeze()
    gc.enable()
    return serve(dict(os.environ))


if __name__ == "__main__":
    sys.exit(main())
