"""pip, in a process that starts no other: run as `python -I guarded_pip.py download ...`, never imported.

Owns what `--only-binary :all:` leaves open: a wheel's metadata may name a dependency by its address, a repository even, and
pip would fetch and build that (it refuses so only for PyPI's own). Here a requirement with an address is invalid, and
whatever would start a program (a build, git, a credential helper) fails.
"""

import sys


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


def run() -> int:
    """Pip's own exit status."""
    _refuse_addresses()
    sys.addaudithook(_refuse_programs)
    from pip._internal.cli.main import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run())
