"""Signatures: by the specification's own example, and what is no secret."""

import base64

import pytest
from pydantic import SecretStr

from amplifier_api_server.control_plane.webhooks.signing import headers_of, key_of


def test_a_message_is_signed_as_the_specifications_libraries_verify_it():
    # From the reference libraries' own tests.
    secret = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = headers_of("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', secret)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_without_a_secret_it_is_not_signed():
    assert "webhook-signature" not in headers_of("cb_1", 1, b"{}", None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "password",
        base64.b64encode(b"x" * 32).decode(),
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_not base64 at all, not at all, no",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSé",
    ],
)
def test_what_is_no_secret_is_refused_without_being_told(text):
    with pytest.raises(ValueError, match="whsec_ and the base64") as refused:
        key_of(SecretStr(text))
    assert not text or text not in str(refused.value)
