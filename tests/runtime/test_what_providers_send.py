"""What a session makes of what providers really send: each row of the table of cases, whole and in any division into chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dialect_cases import CASES, named
from tests.dialect_cases.case import Case
from tests.dialect_cases.reading import is_as_expected


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_a_provider_sends_is_the_answer_that_it_means(case: Case):
    is_as_expected(case, [case.sent])


@pytest.mark.parametrize("case", CASES, ids=named)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_it_means_the_same_in_any_division_into_chunks(case: Case, data: st.DataObject):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(case.sent)), max_size=8)))
    is_as_expected(case, [case.sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(case.sent)], strict=True)])
