"""The dialects of model calls that sandboxes may use: one file each, and what they share in `dialect`."""

from __future__ import annotations

from collections.abc import Mapping

from amplifier_api_server.control_plane.model_gateway.dialects.chat import Chat
from amplifier_api_server.control_plane.model_gateway.dialects.dialect import Dialect, InvalidRequest, Reader, Request
from amplifier_api_server.control_plane.model_gateway.dialects.messages import Messages, TokenCount
from amplifier_api_server.control_plane.model_gateway.dialects.responses import Responses
from amplifier_api_server.runtime.protocol import Gateway

__all__ = ["BY_PATH", "CHAT", "MESSAGES", "RESPONSES", "Dialect", "InvalidRequest", "Reader", "Request"]

CHAT: Dialect = Chat()
RESPONSES: Dialect = Responses()
MESSAGES: Dialect = Messages()

BY_PATH: Mapping[str, Dialect] = {
    Gateway.CHAT_COMPLETIONS: CHAT,
    Gateway.RESPONSES: RESPONSES,
    Gateway.MESSAGES: MESSAGES,
    Gateway.COUNT_TOKENS: TokenCount(),
}
