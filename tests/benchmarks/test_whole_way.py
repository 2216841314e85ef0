from __future__ import annotations

import pytest
from benchmarks.__main__ import SMOKE

from benchmarks import doors, streams, turns


@pytest.mark.parametrize("bench", [turns, streams, doors])
def test_a_small_run_gives_its_rows(bench):
    name = bench.__name__.rpartition(".")[2]
    rows = bench.run(**SMOKE[name])
    assert {row.bench for row in rows} == {name}
    assert all(row.value > 0 for row in rows if row.unit != "KiB")
