"""A program: import packages one after the other and say, line by line, how each went. A process that may be killed.

Usage: python -m amplifier_api_server.runtime.import_check PACKAGE... Each is announced (`? name`) before it is imported, so
that whoever reads knows which one never came back; then `+ name`, or `- name reason`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence


def main(names: Sequence[str]) -> int:
    out = sys.stdout
    sys.stdout = sys.stderr  # what they print is not ours
    for name in names:
        out.write(f"? {name}\n")
        out.flush()
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it is a stranger's module
            why = " ".join(f"{type(error).__name__}: {error}".split())
            out.write(f"- {name} {why[:300]}\n")
        else:
            out.write(f"+ {name}\n")
        out.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
