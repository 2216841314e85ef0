"""ID tokens that are not what they should be, each refused for its own reason."""

import base64
import hashlib
import json
import warnings
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from amplifier_api_server.control_plane.auth.key_sets import keys_in
from amplifier_api_server.control_plane.logins.id_tokens import require, require_access_token, verified
from amplifier_api_server.control_plane.logins.profiles import ProviderWrong

NOW = 1_800_000_000.0
GOOD = {
    "iss": "https://id.example", "aud": "us", "sub": "ada", "nonce": "n", "exp": NOW + 300, "iat": NOW - 5,
}  # fmt: skip
RSA, OTHER, EC, ED = (
    RSAKey.generate_key(2048),
    RSAKey.generate_key(2048),
    ECKey.generate_key("P-256"),
    OKPKey.generate_key("Ed25519"),
)
KEYS = keys_in(
    {"keys": [{**key.as_dict(private=False), "kid": kid} for kid, key in (("rsa", RSA), ("ec", EC), ("ed", ED))]}, "x"
)


async def fitting(kid: str | None, algorithm: str) -> list[Any]:
    return [one for one in KEYS if algorithm in one.algorithms and kid in (None, one.kid)]


def signed(claims: Any = GOOD, key: Any = RSA, **header: Any) -> str:
    head = {"alg": "RS256", "kid": "rsa", **header}
    registry = jws.JWSRegistry(algorithms=[head["alg"]], strict_check_header=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EdDSA has another name since RFC 9864; issuers go on using it
        return jws.serialize_compact(head, json.dumps(claims).encode(), key, registry=registry)


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("key", "kid", "alg"), [(RSA, "rsa", "RS256"), (RSA, "rsa", "PS512"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")]
)
async def test_a_genuine_token_is_believed(key, kid, alg):
    claims, algorithm = await verified(signed(key=key, kid=kid, alg=alg), fitting)
    require(claims, issuer="https://id.example", client_id="us", nonce="n", now=NOW)
    assert (claims["sub"], algorithm) == ("ada", alg)


def hmac_with_the_public_key() -> str:
    """An RSA key's public part as an HMAC's secret: what a verifier that asks the token for the algorithm would believe."""
    import hmac as hmac_module

    text = f"{part({'alg': 'HS256', 'kid': 'rsa'})}.{part(GOOD)}"
    signature = hmac_module.digest(RSA.as_pem(private=False), text.encode(), "sha256")
    return f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


FORGED = {
    "no signature": lambda: f"{part({'alg': 'none'})}.{part(GOOD)}.",
    "no signature, in capitals": lambda: f"{part({'alg': 'NONE'})}.{part(GOOD)}.",
    "the public key as a secret": hmac_with_the_public_key,
    "a secret": lambda: signed(key=OctKey.generate_key(256), alg="HS256"),
    "another's key": lambda: signed(key=OTHER),
    "another's key, brought along": lambda: signed(key=OTHER, jwk=OTHER.as_dict(private=False)),
    "a kid that is not there": lambda: signed(kid="x"),
    "another key's kid": lambda: signed(kid="ec"),
    "a kid that is no text": lambda: f"{part({'alg': 'RS256', 'kid': 7})}.{part(GOOD)}.x",
    "an algorithm that is no text": lambda: f"{part({'alg': ['RS256']})}.{part(GOOD)}.x",
    "changed claims": lambda: ".".join([signed().split(".")[0], part({**GOOD, "sub": "eve"}), signed().split(".")[2]]),
    "what is critical": lambda: f"{part({'alg': 'RS256', 'kid': 'rsa', 'crit': ['x'], 'x': 1})}.{part(GOOD)}.x",
    "an access token": lambda: signed(typ="at+jwt"),
    "claims that are no object": lambda: signed(["ada"]),
    "too large": lambda: signed({**GOOD, "x": "x" * 20_000}),
    "no token": lambda: "x",
    "five parts": lambda: "a.b.c.d.e",
}


@pytest.mark.parametrize("what", FORGED)
async def test_a_forged_token_is_not_believed(what):
    with pytest.raises(ProviderWrong):
        await verified(FORGED[what](), fitting)


WRONG = {
    "another issuer": {"iss": "https://id.example/"},
    "no issuer": {"iss": None},
    "another client": {"aud": "them"},
    "no client": {"aud": []},
    "several clients, and not said for whom": {"aud": ["us", "them"]},
    "several clients, for another": {"aud": ["us", "them"], "azp": "them"},
    "for another": {"azp": "them"},
    "expired": {"exp": NOW - 61},
    "without an end": {"exp": None},
    "an end that is no time": {"exp": "tomorrow"},
    "an end that is true": {"exp": True},
    "of the future": {"iat": NOW + 61},
    "of long ago": {"iat": NOW - 700},
    "of no time": {"iat": None},
    "not yet": {"nbf": NOW + 120},
    "another login": {"nonce": "m"},
    "no login": {"nonce": None},
    "nobody": {"sub": ""},
    "a number": {"sub": 7},
    "somebody long": {"sub": "a" * 256},
}


@pytest.mark.parametrize("what", WRONG)
def test_a_genuine_token_for_something_else_is_not_believed(what):
    with pytest.raises(ProviderWrong):
        require({**GOOD, **WRONG[what]}, issuer="https://id.example", client_id="us", nonce="n", now=NOW)


def test_a_token_for_several_clients_is_believed_where_it_says_that_it_is_for_us():
    require(
        {**GOOD, "aud": ["them", "us"], "azp": "us"}, issuer="https://id.example", client_id="us", nonce="n", now=NOW
    )


@pytest.mark.parametrize(
    ("algorithm", "name"), [("RS256", "sha256"), ("ES384", "sha384"), ("EdDSA", "sha512"), ("Ed25519", "sha512")]
)
def test_the_access_token_has_to_be_the_one_that_the_id_token_came_with(algorithm, name):
    digest = hashlib.new(name, b"token").digest()
    at_hash = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    require_access_token({"at_hash": at_hash}, algorithm, "token")
    require_access_token({}, algorithm, "token")
    for wrong in ("x", 7, at_hash[:-1]):
        with pytest.raises(ProviderWrong):
            require_access_token({"at_hash": wrong}, algorithm, "token")
