"""What providers really send, and what is to be made of it: one table for whoever reads the dialects.

A row is a stream, or one answer, as it comes from a provider, and the answer that it is. The runtime reads all of it; the model
gateway reads what it counts.
"""

from __future__ import annotations

from tests.dialect_cases.case import Case
from tests.dialect_cases.chat import CHAT
from tests.dialect_cases.messages import MESSAGES
from tests.dialect_cases.responses import RESPONSES

CASES = [*CHAT, *MESSAGES, *RESPONSES]


def named(case: Case) -> str:
    return f"{case.dialect}: {case.name}"
