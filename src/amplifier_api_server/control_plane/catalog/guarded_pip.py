"""pip, in a process that starts no other: run as `python -I guarded_pip.py download ...`, never imported.

Owns what `--only-binary :all:` leaves open: a wheel's metadata may name a dependency by its address, a repository even, and
pip would fetch and build that (it refuses so only for PyPI's own). Here a requirement with an address is invalid, and
whatever would start a program (a build, git, a credential helper) fails. Where it is started by root it becomes `nobody`
before it reads a byte of what a tenant chose; what it is made of is imported before, because nobody may be kept from the
folder where the interpreter lies.
"""

import importlib
import os
import pkgutil
import sys

_NOBODY = 65534  # and nogroup, on every Linux (LSB 3.1, 22.1)
_PARTS = ("pip._internal", "pip._vendor.requests", "pip._vendor.urllib3", "pip._vendor.cachecontrol", "encodings")


def _refuse_programs(event: str, _arguments: object) -> None:
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.fork", "os.forkpty"):
        raise PermissionError(f"{event}: no program is started here")


def _refuse_addresses() -> None:
    from pip._vendor.packaging.requirements import InvalidRequirement, Requirement

    read = Requirement.__init__

    def checked(self: Requirement, requirement_string: str) -> None:
        read(self, requirement_string)
        if self.url:
            raise InvalidRequirement(f"{self.name} is named by an address, which is not taken")

    Requirement.__init__ = checked  # type: ignore[method-assign]


def _become_nobody() -> None:
    """For good, with no group and no capability of root's. Nothing to do for an ordinary user."""
    if os.geteuid() != 0:
        return
    for part in _PARTS:
        for module in pkgutil.walk_packages(importlib.import_module(part).__path__, f"{part}."):
            if "__main__" not in module.name:
                try:
                    importlib.import_module(module.name)
                except (ImportError, ValueError):  # of another system, or of what is not installed
                    continue
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    sys.path[:] = [folder for folder in sys.path if os.access(folder, os.R_OK | os.X_OK)]  # pip looks into each


def run() -> int:
    """Pip's own exit status."""
    _become_nobody()
    _refuse_addresses()
    sys.addaudithook(_refuse_programs)
    from pip._internal.cli.main import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
