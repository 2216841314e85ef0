"""Tokens that are refused: forged, misused, of the wrong kind, of another time."""

from __future__ import annotations

import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import OctKey

from amplifier_api_server.control_plane.errors import headers_of
from amplifier_api_server.tenants.errors import Unauthenticated
from amplifier_api_server.tenants.models import Member
from tests.control_plane.auth.conftest import House
from tests.control_plane.auth.issuer import AUDIENCE, Issuer, b64, ec, ed, published, rsa, signed
from tests.control_plane.auth.test_tokens import rows
from tests.tenants.embedded import embedded_in

HOUR = 3600


def attacks(house: House) -> dict[str, str]:
    now = house.embedded.clock.now()
    at = int(now.timestamp())
    good = house.token()
    head, body, signature = good.split(".")
    claims = json.dumps(house.issuer.claims(now, tenant_id=house.tenant.id)).encode()
    public = rsa().as_pem(private=False)

    def head_of(**header: Any) -> str:
        return b64(json.dumps(header).encode())

    swapped = json.dumps(house.issuer.claims(now, tenant_id=house.tenant.id, roles=["admin"])).encode()
    other = published(rsa("two"), "k1")
    hmac_head = head_of(alg="HS256", kid="k1", typ="at+jwt") + "." + b64(claims)
    hmac_signature = b64(hmac.digest(public, hmac_head.encode(), "sha256"))
    return {
        "alg none": f"{head_of(alg='none', typ='at+jwt')}.{b64(claims)}.",
        "alg None": f"{head_of(alg='nOnE', typ='at+jwt')}.{b64(claims)}.",
        "alg none with a signature": f"{head_of(alg='none', kid='k1')}.{body}.{signature}",
        "HMAC with the public key": f"{hmac_head}.{hmac_signature}",
        "an algorithm that is not taken": house.token(header={"alg": "RS512"}),
        "another key under the kid": house.token(key=rsa("two")),
        "an unknown kid": house.token(header={"kid": "k2"}, key=rsa("two")),
        "a key of its own": house.token(header={"jwk": other}, key=rsa("two")),
        "a key set of its own": house.token(header={"jku": "http://127.0.0.1:1/jwks", "kid": "x"}, key=rsa("two")),
        "a certificate of its own": house.token(header={"x5u": "http://127.0.0.1:1/x", "kid": "x"}, key=rsa("two")),
        "other claims under the signature": f"{head}.{b64(swapped)}.{signature}",
        "another header under the signature": f"{head_of(alg='RS256', kid='k1')}.{body}.{signature}",
        "another signature": f"{head}.{body}.{b64(b'x' * 256)}",
        "no signature": f"{head}.{body}.",
        "crit": house.token(header={"crit": ["exp"], "exp": 1}),
        "crit, empty": house.token(header={"crit": []}),
        "b64 false": house.token(header={"crit": ["b64"], "b64": False}),
        "not valid yet": house.token(nbf=at + HOUR),
        "issued in the future": house.token(iat=at + HOUR),
        "never expires": house.token(exp=None),
        "exp is a text": house.token(exp=str(at + HOUR)),
        "exp is true": house.token(exp=True),
        "exp is no number": good.replace(body, b64(claims.replace(str(at + 600).encode(), b"1e999"))),
        "exp is beyond all time": house.token(exp=1e300),
        "another audience": house.token(aud="another-api"),
        "audiences without ours": house.token(aud=["a", "b", 7, None]),
        "no audience": house.token(aud=None),
        "an audience that begins like ours": house.token(aud=AUDIENCE + "x"),
        "another issuer": house.token(iss="https://evil.example.com"),
        "our issuer with a slash": house.token(iss=house.issuer.url + "/"),
        "no issuer": house.token(iss=None),
        "issuers": house.token(iss=[house.issuer.url]),
        "an ID token's kind": house.token(header={"typ": "logout+jwt"}),
        "an event's kind": house.token(header={"typ": "application/secevent+jwt"}),
        "a kind that is no text": house.token(header={"typ": 7}),
        "no subject": house.token(sub=None),
        "an empty subject": house.token(sub=""),
        "a subject that is no text": house.token(sub=7),
        "a subject with a NUL": house.token(sub="a\x00b"),
        "a long subject": house.token(sub="x" * 256),
        "kid is a number": house.token(header={"kid": 7}),
        "kid is a path": house.token(header={"kid": "../../dev/null"}, key=rsa("two")),
        "kid is long": house.token(header={"kid": "x" * 300}),
        "oversized": house.token(padding="x" * 17_000),
        "encrypted": "a.b.c.d.e",
        "three empty parts": "..",
        "no JSON": f"{b64(b'{')}.{body}.{signature}",
        "a list": f"{b64(b'[]')}.{body}.{signature}",
        "not base64": f"{head}.{body}.!!!",
        "deep": f"{b64(b'[' * 5000)}.{body}.{signature}",
        "two algorithms": signed({"alg": "RS256", "kid": "k1"}, claims, rsa()).replace(
            b64(b'{"alg": "RS256", "kid": "k1"}'), b64(b'{"alg": "RS256", "kid": "k1", "alg": "none"}')
        ),
    }


async def test_attacks_are_refused_as_an_invalid_token(house: House):
    for name, token in attacks(house).items():
        with pytest.raises(Unauthenticated) as refused:
            await house.enter(token)
        assert refused.value.stable_code == "invalid_token", name
        assert token not in refused.value.detail
        challenge = dict(headers_of(refused.value))[b"www-authenticate"]
        assert b'Bearer realm="amplifier", error="invalid_token", error_description="' in challenge
    assert await rows(house, Member) == []


async def test_an_expired_token_is_told_so_even_while_it_is_remembered(house: House):
    token = house.token()
    await house.enter(token)
    house.embedded.clock.advance(600 + 29)
    await house.enter(token)
    house.embedded.clock.advance(1)
    with pytest.raises(Unauthenticated) as refused:
        await house.enter(token)
    assert refused.value.stable_code == "token_expired"


async def test_a_symmetric_key_in_the_key_set_is_never_used(house: House):
    secret = OctKey.generate_key(256)
    house.issuer.keys = [{**secret.as_dict(), "kid": "k1"}, published(rsa(), "k2")]
    with pytest.raises(Unauthenticated):
        await house.enter(house.token(key=secret, header={"alg": "HS256"}))
    assert (await house.enter(house.token(header={"kid": "k2"}))).role == "developer"


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param(lambda: published(rsa("short", 1024), "k1"), id="1024 bits"),
        pytest.param(lambda: {**rsa().as_dict(private=True), "kid": "k1"}, id="private"),
        pytest.param(lambda: published(rsa(), "k1", use="enc"), id="for encryption"),
        pytest.param(lambda: published(rsa(), "k1", key_ops=["sign"]), id="for signing"),
        pytest.param(lambda: published(rsa(), "k1", alg="PS256"), id="for another algorithm"),
        pytest.param(lambda: {"kty": "RSA", "kid": "k1", "n": "!!!", "e": "AQAB"}, id="garbage"),
        pytest.param(lambda: {"kty": "RSA", "kid": "k1", "n": "AQAB"}, id="half"),
        pytest.param(lambda: "k1", id="text"),
    ],
)
@pytest.mark.filterwarnings("ignore:Key size")
async def test_a_key_that_is_no_good_proves_nothing_and_spoils_no_other(house: House, listed: Any):
    house.issuer.keys = [listed(), published(ec(), "k2")]
    key = rsa("short", 1024) if listed() == published(rsa("short", 1024), "k1") else rsa()
    with pytest.raises(Unauthenticated):
        await house.enter(house.token(key=key))
    assert (await house.enter(house.token(key=ec(), header={"alg": "ES256", "kid": "k2"}))).method == "bearer"


@pytest.mark.parametrize(("algorithm", "key"), [("ES256", ec), ("EdDSA", ed), ("PS256", rsa), ("RS256", rsa)])
async def test_each_algorithm_that_is_taken_proves_who_signed(house: House, algorithm: str, key: Any):
    house.issuer.keys = [published(key(), "k")]
    assert (await house.enter(house.token(key=key(), header={"alg": algorithm, "kid": "k"}))).role == "developer"
    head, body, signature = house.token(key=key(), header={"alg": algorithm, "kid": "k"}, jti="2").split(".")
    forged = signature[:-4] + ("AAAA" if not signature.endswith("AAAA") else "BBBB")
    with pytest.raises(Unauthenticated):
        await house.enter(f"{head}.{body}.{forged}")


async def test_a_token_without_a_kid_is_checked_with_the_only_key_that_fits(house: House):
    await house.enter(house.token(header={"kid": None}))
    house.issuer.keys = [published(rsa(), "a"), published(rsa("two"), "b")]
    house.embedded.clock.advance(601)
    await house.enter(house.token(header={"kid": "a"}))
    with pytest.raises(Unauthenticated):
        await house.enter(house.token(header={"kid": None}, jti="x"))


async def test_a_token_counts_only_where_tokens_stand(house: House):
    with pytest.raises(Unauthenticated, match="in the header of API keys"):
        await house.embedded.authenticator.authenticate([(b"x-api-key", house.token().encode())])
    empty = (b"authorization", b"Bearer ")
    with pytest.raises(Unauthenticated, match="in the header of API keys"):
        await house.embedded.authenticator.authenticate([empty, (b"x-api-key", house.token().encode())])
    assert (await house.embedded.authenticator.authenticate_token(house.token())).method == "bearer"
    with pytest.raises(Unauthenticated):
        await house.embedded.authenticator.authenticate_token("é")
    two = [(b"authorization", b"Bearer " + house.token().encode()), (b"x-api-key", b"amp_live_x")]
    with pytest.raises(Unauthenticated, match="two different"):
        await house.embedded.authenticator.authenticate(two)


async def test_a_server_without_an_issuer_takes_no_tokens(tmp_path: Path, issuer: Issuer):
    async with embedded_in(tmp_path) as made:
        house = House(made, issuer, await made.tenant())
        with pytest.raises(Unauthenticated, match="no tokens"):
            await house.enter(house.token())
    assert issuer.asked == []
