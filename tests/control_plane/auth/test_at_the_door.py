"""Callers by token and by key, behind the real edge: what they are told of themselves, and how they are refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from amplifier_api_server.control_plane.framework import framework
from amplifier_api_server.control_plane.routing import route_table
from amplifier_api_server.control_plane.settings import Auth, Settings
from tests.control_plane.accounts.doors import Doors, opened
from tests.control_plane.auth.conftest import House, believing
from tests.control_plane.auth.issuer import rsa, signed
from tests.tenants.embedded import embedded_in


@pytest.fixture
async def doors(house: House) -> AsyncIterator[Doors]:
    async with opened(house.embedded) as found:
        yield found


def bearing(doors: Doors, token: str) -> httpx2.AsyncClient:
    client = doors.caller("")
    del client.headers["x-api-key"]
    client.headers["authorization"] = f"Bearer {token}"
    return client


async def test_a_token_is_told_who_it_is(house: House, doors: Doors):
    answer = await bearing(doors, house.token(name="Ada", roles=["readonly"])).get("/v1/me")
    assert answer.status_code == 200
    said = answer.json()
    ends_at = house.embedded.clock.now() + timedelta(seconds=630)
    assert datetime.fromisoformat(said.pop("expires_at")) == ends_at
    assert said.pop("credential_id").startswith("jwt_")
    assert said.pop("person_id").startswith("per_")
    assert said.pop("grants") == [
        "events:read", "limits:read", "me:read", "models:read", "profiles:read", "sessions:read",
    ]  # fmt: skip
    member = said.pop("member")
    assert member.pop("id").startswith("mem_")
    assert member == {"name": "Ada", "email": None, "kind": "person", "role": "readonly"}
    assert said == {
        "tenant": {"id": house.tenant.id, "name": "T"},
        "role": "readonly",
        "method": "bearer",
        "tier": "pro",
    }


# Everything that a number, or what stands where one should, can be in JSON.
NUMBERS = [
    "253402300799", "253402300800", "253402300769", "253402214401", "9007199254740993", "18446744073709551615",
    "18446744073709551616", "1" * 4000, "1e308", "1e309", "-1e309", "-1", "-0.0001", "-9223372036854775808", "-62135596800",
    "NaN", "Infinity", "true", "false", "null", '""', '"1795417440"', "[]", "[1]", "{}", "0", "0.5", "1e-400",
]  # fmt: skip


@pytest.mark.parametrize("leeway", ["0s", "5m"])
async def test_whatever_number_a_token_has_for_a_time_it_is_an_answer_and_no_error(tmp_path, issuer, leeway: str):
    async with embedded_in(tmp_path, auth=believing(issuer, leeway=leeway)) as made, opened(made) as doors:
        house = House(made, issuer, await made.tenant())
        now = made.clock.now()
        for claim in ("exp", "iat", "nbf"):
            for number in NUMBERS:
                claims = json.dumps(issuer.claims(now, tenant_id=house.tenant.id, **{claim: "HERE"}))
                payload = claims.replace('"HERE"', number).encode()
                token = signed({"alg": "RS256", "kid": "k1", "typ": "at+jwt"}, payload, rsa())
                answer = await bearing(doors, token).get("/v1/me")
                harmless = claim != "exp" and number in ("null", "0", "0.5", "1e-400")
                assert answer.status_code == (200 if harmless else 401), (claim, number, answer.text)


@pytest.mark.parametrize("leeway", ["0s", "5m"])
async def test_the_latest_time_that_a_token_may_end_at_can_be_told(tmp_path, issuer, leeway: str):
    async with embedded_in(tmp_path, auth=believing(issuer, leeway=leeway)) as made, opened(made) as doors:
        house = House(made, issuer, await made.tenant())
        answer = await bearing(doors, house.token(exp=253402214400)).get("/v1/me")
        assert answer.json()["expires_at"].startswith("9999-12-31T00:0")


async def test_who_sends_nothing_is_told_that_a_token_works_too(doors: Doors):
    client = doors.caller("")
    del client.headers["x-api-key"]
    answer = await client.get("/v1/me")
    assert answer.status_code == 401
    assert answer.json()["detail"] == (
        "no credential was sent; send an API key as `X-API-Key: amp_live_...` or `Authorization: Bearer amp_live_...`,"
        " or a token as `Authorization: Bearer eyJ...`"
    )


async def test_a_token_in_the_keys_header_is_told_where_it_belongs(house: House, doors: Doors):
    answer = await doors.caller(house.token()).get("/v1/me")
    assert answer.status_code == 401
    assert answer.json()["detail"].endswith("send it as `Authorization: Bearer eyJ...`")


async def test_a_key_and_the_operator_are_told_too(tmp_path: Path):
    async with embedded_in(tmp_path) as embedded, opened(embedded) as doors:
        mine = (await doors.admin.get("/v1/me")).json()
        theirs = (await doors.operator.get("/v1/me")).json()
    assert (mine["method"], mine["role"], mine["expires_at"], mine["person_id"]) == ("api_key", "admin", None, None)
    assert "*" in mine["grants"]
    assert (theirs["tenant"], theirs["member"], theirs["role"]) == (None, None, "operator")


async def test_asking_who_one_is_counts_against_no_limit(house: House, doors: Doors):
    caller = bearing(doors, house.token())
    answers = [await caller.get("/v1/me") for _ in range(150)]  # the tier has 100 a minute
    assert {one.status_code for one in answers} == {200}


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (lambda house: house.token(aud="another"), "invalid_token"),
        (lambda house: house.token(exp=1), "token_expired"),
        (lambda house: "a.b.c", "invalid_token"),
    ],
)
async def test_a_refused_token_is_told_as_rfc_6750_has_it(house: House, doors: Doors, token: Any, code: str):
    answer = await bearing(doors, token(house)).get("/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    challenge = answer.headers["www-authenticate"]
    assert challenge.startswith('Bearer realm="amplifier", error="invalid_token", error_description="')
    assert challenge.count('"') % 2 == 0
    assert challenge.isascii()


async def test_who_sends_nothing_is_asked_for_something_and_told_of_no_token(doors: Doors):
    answer = await doors.caller("").get("/v1/me")
    assert answer.status_code == 401
    assert "error=" not in answer.headers["www-authenticate"]


async def test_a_genuine_token_without_a_place_here_is_403(house: House, doors: Doors):
    answer = await bearing(doors, house.token(tenant_id="ten_gone")).get("/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (403, "not_a_member")


async def test_an_issuer_that_is_down_is_503_with_a_time(house: House, doors: Doors):
    house.issuer.is_down = True
    answer = await bearing(doors, house.token()).get("/v1/me")
    assert (answer.status_code, answer.json()["code"]) == (503, "issuer_unavailable")
    assert int(answer.headers["retry-after"]) == 10


async def test_a_role_of_a_token_opens_its_doors_and_no_others(house: House, doors: Doors):
    developer = bearing(doors, house.token(sub="dev", roles=["developer"]))
    admin = bearing(doors, house.token(sub="adm", roles=["admin"]))
    assert (await developer.get("/v1/keys")).status_code == 403
    assert (await admin.get("/v1/keys")).status_code == 200
    for caller in (developer, admin):
        assert (await caller.get("/v1/tenants")).status_code == 403


async def test_a_token_of_one_tenant_finds_nothing_of_another(house: House, doors: Doors):
    other = await house.embedded.tenant()
    mine = bearing(doors, house.token(roles=["admin"]))
    made = (await mine.post("/v1/keys", json={"name": "k", "role": "developer"})).json()
    theirs = bearing(doors, house.token(roles=["admin"], tenant_id=other.id))
    assert (await mine.get(f"/v1/keys/{made['id']}")).status_code == 200
    assert (await theirs.get(f"/v1/keys/{made['id']}")).status_code == 404


def test_the_openapi_document_says_how_callers_say_who_they_are():
    auth = Auth.model_validate(
        {"methods": [{"type": "api_key", "header": "X-Key"}, {"type": "bearer", "issuer": "https://i.example", "audience": "a"}]}
    )  # fmt: skip
    settings = Settings(auth=auth)
    document = framework(settings, route_table(settings, None)).openapi()
    schemes = document["components"]["securitySchemes"]
    assert schemes["ApiKey"] == {"type": "apiKey", "in": "header", "name": "X-Key"}
    assert schemes["Bearer"]["bearerFormat"] == "JWT"
    me = document["paths"]["/v1/me"]["get"]
    assert {name for one in me["security"] for name in one} >= {"ApiKey", "Bearer"}
    assert "WWW-Authenticate" in me["responses"]["401"]["headers"]
    assert document["paths"]["/health"]["get"]["security"] == []
