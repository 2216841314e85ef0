"""Inputs of tools, as anybody may send them."""

import json

import pytest
from pydantic import ValidationError

from amplifier_api_server.control_plane.catalog.schemas import ExecuteTool


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"a": %s}' % ("[" * 400 + "]" * 400),
        '{"a": 123456789012345678901234567890}',
    ],
)
def test_what_could_not_be_sent_on_is_refused(text):
    with pytest.raises(ValidationError, match="plain JSON"):
        ExecuteTool.model_validate({"input": json.loads(text)})
