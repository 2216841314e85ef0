from __future__ import annotations

from benchmarks.__main__ import SMOKE

from benchmarks import first_token


def test_a_small_run_gives_its_rows():
    rows = first_token.run(**SMOKE["first_token"])
    assert all(row.value > 0 for row in rows)
    assert {row.bench for row in rows} == {"first token"}
