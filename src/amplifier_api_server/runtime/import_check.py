"""A program: import modules one after the other as a session would, and say, line by line, how each went. A process that
may be killed.

Usage: python -m amplifier_api_server.runtime.import_check WHAT... Each `WHAT` is `ID=FOLDER`, a module and where it is
imported from, or the name of a package that is only imported. It is announced (`? name`) first, so that whoever reads
knows which one never came back; then `+ name`, or `- name reason`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from amplifier_api_server.runtime.module_loader import ModuleMissingError, from_outside


def main(given: Sequence[str]) -> int:
    out = sys.stdout
    sys.stdout = sys.stderr  # what they print is not ours
    for one in given:
        name, _, folder = one.partition("=")
        out.write(f"? {name}\n")
        out.flush()
        try:
            _try(name, folder)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it is a stranger's module
            kind = "" if isinstance(error, ModuleMissingError) else f"{type(error).__name__}: "
            why = " ".join(f"{kind}{error}".split())
            out.write(f"- {name} {why[:300]}\n")
        else:
            out.write(f"+ {name}\n")
        out.flush()
    return 0


def _try(name: str, folder: str) -> None:
    if not folder:
        importlib.import_module(name)
        return
    _, mount = from_outside(name, Path(folder))
    if not callable(mount):
        raise ModuleMissingError("it has no mount()")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
