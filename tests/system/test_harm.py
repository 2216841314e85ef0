"""A tenant that takes all it can get: processes, disk, memory, time. Its neighbour does not notice, it is held, and its
session goes on.

Each is tried by the `bash` tool and by a module in the runtime's own process.
"""

import os
import threading
import time
from pathlib import Path

import pytest

from tests.system.evil import attacker, evil_archive, install
from tests.system.server import FREE, eventually

EXPECTED_ERRORS = ("runtime_lost", "module_failed", "turn_failed", "turn_cancelled", "not_durable")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def settings():
    return {
        "AMPLIFIER_SANDBOX__MEMORY": "300MiB",
        "AMPLIFIER_SANDBOX__WORKSPACE": "96MiB",
        "AMPLIFIER_SANDBOX__FILE_SIZE": "64MiB",
        "AMPLIFIER_SANDBOX__PROCESSES": "64",
        "AMPLIFIER_SESSIONS__TOOL_TIMEOUT": "5s",
        "AMPLIFIER_SANDBOX__CPU_SECONDS_PER_TOOL": "4",
    }


@pytest.fixture(params=["bash", "module"])
def attack(request, server):
    caller = server.tenant("mallory", **FREE)
    install(caller, evil_archive())
    return attacker(caller, request.param)


class Neighbour:
    """Asks all the time. What an answer takes when nobody attacks is the machine's, and allowed for."""

    def __init__(self, caller) -> None:
        self.slowest, self.answers = 0.0, 0
        self._caller, self._session = caller, caller.session()
        self._ask()
        self._usual = self._ask()
        self._stop = threading.Event()
        self._failed: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.slowest = max(self.slowest, self._ask())
                self.answers += 1
        except Exception as error:  # noqa: BLE001 - told at the end
            self._failed = error

    def _ask(self) -> float:
        begun = time.monotonic()
        assert "42" in self._caller.shell(self._session, "echo $((6*7))")
        return time.monotonic() - begun

    @property
    def is_held_up(self) -> bool:
        return self.slowest > 8 + 20 * self._usual

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed
        assert self.answers >= 1


@pytest.fixture
def neighbour(server):
    return Neighbour(server.tenant("neighbour", **FREE))


def goes_on(attack) -> None:
    """The attacker's own session, too, works again."""
    assert eventually(lambda: attack.caller.execute(attack.session_id, "after").status == 200, every_seconds=0.2)


def test_a_fork_bomb(server, attack, neighbour):
    most, before = 0, len(server.tree())
    with neighbour:
        code = """
            import os, time
            until = time.monotonic() + 3
            while time.monotonic() < until:
                try:
                    if os.fork() == 0:
                        for _ in range(10000):
                            try:
                                os.fork()
                            except OSError:
                                time.sleep(0.05)
                            if time.monotonic() > until + 30:
                                os._exit(0)
                except OSError:
                    time.sleep(0.05)
            """
        thread = threading.Thread(target=attack.caller.execute, args=(attack.session_id, attack.prompt(code)))
        thread.start()
        while thread.is_alive():
            most = max(most, len(server.tree()) - before)
            time.sleep(0.05)
        thread.join()
    assert most < 64 * 2 + 60, "about as many as the limit says"
    assert not neighbour.is_held_up
    goes_on(attack)


def test_filling_the_disk(server, attack, neighbour):
    most = 0
    with neighbour:
        code = """
            import os
            kept = []
            try:
                for index in range(2000):
                    file = open(f"/workspace/fill-{index}" if index % 2 else f"fill-{index}", "wb")
                    kept.append(file)
                    file.write(b"x" * (8 << 20))
                    file.flush()
            except OSError as error:
                found["error"] = str(error)
            """
        thread = threading.Thread(target=attack.caller.execute, args=(attack.session_id, attack.prompt(code)))
        thread.start()
        while thread.is_alive():
            most = max(most, size_of(server.data_dir))
            time.sleep(0.05)
        thread.join()
    assert most < 1500 * MIB, f"{most / MIB:.0f} MiB were on the disk at once"
    assert not neighbour.is_held_up
    goes_on(attack)


def size_of(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                pass
    return total


def test_filling_the_temporary_folders(server, attack, neighbour):
    with neighbour:
        found = attack.found("""
            import os
            for folder in ("/tmp", "/dev/shm"):
                found[folder] = 0
                try:
                    for index in range(400):
                        with open(f"{folder}/fill-{index}", "wb") as file:
                            file.write(b"x" * (1 << 20))
                        found[folder] += 1
                except OSError:
                    pass
                for name in os.listdir(folder):
                    if name.startswith("fill-"):
                        os.unlink(f"{folder}/{name}")
            """)
    assert found["/tmp"] <= 64
    assert found["/dev/shm"] <= 16
    goes_on(attack)


@pytest.mark.parametrize(
    "take",
    [
        "kept.append(bytearray(16 << 20))",
        "kept.append(mmap.mmap(-1, 16 << 20)); kept[-1].write(b'x' * (16 << 20))",
    ],
    ids=["own", "shared"],
)
def test_hogging_memory(server, attack, neighbour, take):
    most = 0
    with neighbour:
        code = f"""
            import mmap
            kept = []
            try:
                for _ in range(400):
                    {take}
            except (MemoryError, OSError, ValueError):
                found["stopped"] = len(kept)
            kept.clear()
            """
        thread = threading.Thread(target=attack.caller.execute, args=(attack.session_id, attack.prompt(code)))
        thread.start()
        while thread.is_alive():
            most = max(most, max(map(resident, server.sandboxed()), default=0))
            time.sleep(0.02)
        thread.join()
    assert most < 900 * MIB, f"{most / MIB:.0f} MiB"
    assert not neighbour.is_held_up
    goes_on(attack)


def resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def test_a_loop_without_end(server, attack, neighbour):
    with neighbour:
        answer = (
            attack.caller.call(
                "POST", f"/v1/sessions/{attack.session_id}/execute", {"prompt": attack.prompt("while True: pass")}
            )
            if attack.way == "bash"
            else None
        )
        assert answer is None or answer.status == 200
    assert not neighbour.is_held_up
    goes_on(attack)


def test_a_module_that_blocks_the_loop_is_replaced(server, neighbour):
    """It holds the interpreter of its session's own process: nothing in that runs any more."""
    caller = server.tenant("mallory", **FREE)
    install(caller, evil_archive())
    attack = attacker(caller, "module")
    caller.timeout_seconds = 60
    with neighbour:
        code = "import asyncio, time\ncoordinator.get_capability('amplifier_api_server.turn_port').turn.cancelled.get_loop().call_soon_threadsafe(time.sleep, 50)"
        answer = caller.execute(attack.session_id, attack.prompt(code))
    assert (answer.status, answer.code) == (502, "module_failed")
    assert not neighbour.is_held_up
    goes_on(attack)


def test_endless_output_is_cut(server, attack, neighbour):
    with neighbour:
        if attack.way == "bash":
            call = attack.caller.tool(attack.session_id, "bash", command="timeout 2 yes")
            assert len(str(call)) < 200_000
        else:
            answer = attack.caller.execute(attack.session_id, attack.prompt("found['x'] = 'y' * (30 << 20)"))
            assert len(answer.body) < 1_000_000
    assert not neighbour.is_held_up
    goes_on(attack)
