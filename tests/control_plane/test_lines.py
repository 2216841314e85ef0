from __future__ import annotations

import asyncio
import io
import threading

from amplifier_api_server.control_plane.lines import Lines


class Counted(io.BytesIO):
    writes = 0

    def write(self, data: object) -> int:
        self.writes += 1
        return super().write(data)  # type: ignore[call-overload,no-any-return]


async def test_lines_of_one_turn_of_the_loop_are_one_write():
    file = Counted()
    lines = Lines(file)
    lines.msg(b"first")
    lines.msg(b"second")
    assert file.getvalue() == b""
    await asyncio.sleep(0)
    assert file.getvalue() == b"first\nsecond\n"
    assert file.writes == 1


async def test_an_error_is_written_at_once_after_what_came_before():
    file = Counted()
    lines = Lines(file)
    lines.msg(b"before")
    lines.error(b"error")
    assert file.getvalue() == b"before\nerror\n"


async def test_lines_go_on_after_a_flush():
    file = Counted()
    lines = Lines(file)
    for number in range(3):
        lines.msg(b"%d" % number)
        await asyncio.sleep(0)
    assert file.getvalue() == b"0\n1\n2\n"


def test_a_thread_without_a_loop_writes_at_once():
    file = Counted()
    lines = Lines(file)
    thread = threading.Thread(target=lines.msg, args=(b"from a thread",))
    thread.start()
    thread.join()
    assert file.getvalue() == b"from a thread\n"


async def test_a_closed_file_ends_nothing():
    file = Counted()
    lines = Lines(file)
    file.close()
    lines.error(b"nobody reads this")
