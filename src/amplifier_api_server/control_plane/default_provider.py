"""Which provider module a profile gets that names none: one that speaks the dialect of the model that is the default."""

from __future__ import annotations

from amplifier_api_server.control_plane.model_names import DEFAULT, WrongName, expanded, served
from amplifier_api_server.control_plane.settings import Models

_MODULES = {"openai": "provider-openai", "anthropic": "provider-anthropic"}


def default_provider(models: Models) -> str:
    """The runtime's own module for the default model's provider; of the first provider where no default is named.

    The demo, which stands in where no provider is configured, speaks as openai does.
    """
    found = models.providers[0] if models.providers else None
    if models.default is not None and models.default != DEFAULT:
        try:
            leaves = expanded(models.aliases, models.default)
        except WrongName:
            leaves = ()
        serving = next((one for leaf in leaves if (one := served(models.providers, leaf)) is not None), None)
        found = serving[0] if serving is not None else found
    return _MODULES[found.dialect if found is not None else "openai"]
