"""A profile that names no provider gets the one that speaks to the default model."""

import pytest

from amplifier_api_server.control_plane.default_provider import default_provider
from amplifier_api_server.control_plane.settings import Models

OPENAI = {"name": "o", "base_url": "https://o.example.com", "models": ("gpt",)}
ANTHROPIC = {"name": "a", "dialect": "anthropic", "base_url": "https://a.example.com", "models": ("claude",)}


@pytest.mark.parametrize(
    ("providers", "more", "module"),
    [
        ([], {}, "provider-openai"),
        ([OPENAI], {}, "provider-openai"),
        ([ANTHROPIC], {}, "provider-anthropic"),
        ([OPENAI, ANTHROPIC], {}, "provider-openai"),
        ([OPENAI, ANTHROPIC], {"default": "claude"}, "provider-anthropic"),
        ([OPENAI, ANTHROPIC], {"default": "a/claude"}, "provider-anthropic"),
        ([ANTHROPIC, OPENAI], {"default": "fast", "aliases": {"fast": ("gpt", "claude")}}, "provider-openai"),
        ([ANTHROPIC, OPENAI], {"default": "default"}, "provider-anthropic"),
    ],
)
def test_it_is_of_the_default_models_dialect(providers, more, module):
    assert default_provider(Models.model_validate({"providers": providers, **more})) == module
