from __future__ import annotations

import pytest
from benchmarks.rows import Row, percentile, show
from rich.console import Console


@pytest.mark.parametrize(
    ("row", "is_met"),
    [
        (Row("b", "n", 4.0, "ms", aim=5), True),
        (Row("b", "n", 6.0, "ms", aim=5), False),
        (Row("b", "n", 30.0, "1/s", peer=100.0, aim=0.3, better="higher", aims_at="ratio"), True),
        (Row("b", "n", 29.0, "1/s", peer=100.0, aim=0.3, better="higher", aims_at="ratio"), False),
        (Row("b", "n", 29.0, "1/s", peer=100.0), None),
    ],
)
def test_a_row_says_whether_its_aim_is_met(row: Row, is_met: bool | None):
    assert row.is_met is is_met


def test_a_percentile_is_one_of_the_values():
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0], 100) == 3.0


def test_the_table_shows_what_was_not_met():
    console = Console(width=160)
    with console.capture() as shown:
        show([Row("router", "speed", 6.0, "ms", aim=5)], console)
    assert "not met" in shown.get()
