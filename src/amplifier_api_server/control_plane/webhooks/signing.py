"""Signatures of what is sent to other people's servers, as Standard Webhooks 1.0 has them. Pure.

Its libraries verify what is made here: HMAC-SHA256 of `id.timestamp.body`, by a key that is written `whsec_` and base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from pydantic import SecretStr

PREFIX = "whsec_"
_MIN_KEY_BYTES = 24
_MAX_KEY_BYTES = 64
SHOULD_BE = (
    f"{PREFIX} and the base64 of {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES} random bytes, "
    f'as `echo "{PREFIX}$(openssl rand -base64 32)"` makes it'
)


def key_of(secret: SecretStr) -> bytes:
    """Raises ValueError, which holds nothing of the secret."""
    text = secret.get_secret_value()
    try:
        if not text.startswith(PREFIX):
            raise ValueError
        key = base64.b64decode(text.removeprefix(PREFIX).encode("ascii"), validate=True)
        if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ValueError(f"should be {SHOULD_BE}") from None
    return key


def headers_of(message_id: str, sent_at_seconds: int, body: bytes, secret: SecretStr | None) -> dict[str, str]:
    """The headers of a message; without a secret it is not signed. Raises ValueError for what is no secret."""
    headers = {"webhook-id": message_id, "webhook-timestamp": str(sent_at_seconds)}
    if secret is not None:
        signed = f"{message_id}.{sent_at_seconds}.".encode() + body
        digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
        headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return headers
