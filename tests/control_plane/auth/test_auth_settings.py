"""How callers may say who they are, as an operator writes it down."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from amplifier_api_server.control_plane.logins.providers import Providers
from amplifier_api_server.control_plane.settings import Auth, SettingsError, load

DOCUMENTED = """
auth:
  methods:
    # API Key (simple)
    - type: api_key
      header: X-API-Key

    # Bearer Token (JWT)
    - type: bearer
      issuer: https://auth.example.com
      audience: amplifier-api

    # OAuth2
    - type: oauth2
      provider: github
      scopes: [read:user, repo]
"""


def loaded(folder: Path, text: str, **environ: str):
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, environ).auth


def method(text: str) -> str:
    return "auth:\n  methods:\n    - {" + text + "}"


def test_all_three_ways_stand_beside_each_other(tmp_path: Path):
    auth = loaded(tmp_path, DOCUMENTED)
    assert [one.type for one in auth.methods] == ["api_key", "bearer", "oauth2"]
    assert auth.bearers[0].audience == ("amplifier-api",)
    assert auth.bearers[0].algorithms == ("RS256", "ES256", "EdDSA", "PS256")
    assert auth.logins[0].scopes == ("read:user", "repo")
    assert not auth.logins[0].is_complete  # it has no client yet


ISSUERS = {
    "open": {},
    "mapped": {"tenant_map": {"acme": "ten_1"}},
    "pinned": {"default_tenant": "ten_2"},
    "trusted": {"any_tenant": True},
}


def issuers(*kinds: str) -> Auth:
    methods = [
        {"type": "bearer", "issuer": f"https://{number}.example.com", "audience": "a", "claims": ISSUERS[kind]}
        for number, kind in enumerate(kinds)
    ]
    return Auth.model_validate({"methods": methods})


@pytest.mark.parametrize(
    "kinds",
    [("open",), ("open", "pinned"), ("open", "mapped", "trusted"), ("pinned", "pinned"), ("trusted", "trusted")],
)
def test_issuers_whose_tenants_are_known_stand_beside_each_other(kinds: tuple[str, ...]):
    assert len(issuers(*kinds).bearers) == len(kinds)


@pytest.mark.parametrize("kinds", [("open", "open"), ("pinned", "open", "trusted", "open")])
def test_of_two_issuers_that_would_each_speak_for_every_tenant_both_are_named(kinds: tuple[str, ...]):
    with pytest.raises(ValueError, match=r"example\.com and https://.*would each speak for every tenant.*any_tenant"):
        issuers(*kinds)


def test_a_map_of_tenants_and_every_tenant_contradict_each_other():
    with pytest.raises(ValueError, match="contradict each other"):
        Auth.model_validate(
            {
                "methods": [
                    {
                        "type": "bearer",
                        "issuer": "https://i.example.com",
                        "audience": "a",
                        "claims": {"tenant_map": {"a": "t"}, "any_tenant": True},
                    }
                ]
            }
        )


async def test_a_method_by_which_nobody_can_log_in_is_told_in_the_log(embedded):
    methods = [
        {"type": "oauth2", "provider": "github"},
        {"type": "oauth2", "provider": "github", "name": "x", "client_id": "i"},
    ]
    settings = embedded.settings.model_copy(update={"auth": Auth.model_validate({"methods": methods})})
    with capture_logs() as logged:
        providers = Providers(settings, embedded.clock)
    assert providers.methods == {}
    told = [(one["method"], one["lacks"]) for one in logged if one["event"] == "nobody can log in by a method"]
    assert told == [("github", "client_id"), ("x", "client_secret")]
    await providers.close()


def test_a_client_is_completed_from_the_environment(tmp_path: Path):
    auth = loaded(tmp_path, DOCUMENTED, GITHUB_CLIENT_ID="abc", GITHUB_CLIENT_SECRET="s3cret-value")
    login = auth.logins[0]
    assert login.is_complete
    assert login.client_secret.get_secret_value() == "s3cret-value"
    assert "s3cret-value" not in repr(auth)


def test_a_client_names_the_variable_of_its_secret(tmp_path: Path):
    text = method(
        "type: oauth2, provider: oidc, issuer: 'https://i.example', client_id: x, client_secret_env: MY_SECRET"
    )
    assert loaded(tmp_path, text, MY_SECRET="s").logins[0].is_complete
    with pytest.raises(SettingsError, match="MY_SECRET is not set"):
        loaded(tmp_path, text)


def test_methods_can_stand_in_the_environment(tmp_path: Path):
    auth = loaded(
        tmp_path, "", AMPLIFIER_AUTH__METHODS="[{type: bearer, issuer: 'https://i.example', audience: [a, b]}]"
    )
    assert auth.bearers[0].audience == ("a", "b")
    assert auth.keys == ()


def test_github_enterprise_is_another_provider_than_github(tmp_path: Path):
    text = method("type: oauth2, provider: github, api_url: 'https://ghe.example.com/api/v3'")
    auth = loaded(tmp_path, text)
    assert auth.logins[0].identity_provider != loaded(tmp_path, DOCUMENTED).logins[0].identity_provider == "github"
    assert "ghe.example.com:443" in auth.named_hosts


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://[::1]:8080",
        "http://10.1.2.3:9000",
        "https://a.example/realm",
    ],
)
def test_an_address_that_is_near_or_encrypted_is_taken(tmp_path: Path, url: str):
    assert loaded(tmp_path, method(f"type: bearer, issuer: '{url}', audience: a")).bearers[0].issuer == url


def test_http_is_taken_of_a_host_that_was_named(tmp_path: Path):
    text = method("type: bearer, issuer: 'http://keycloak.auth.svc:8080', audience: a")
    with pytest.raises(SettingsError, match="private_hosts"):
        loaded(tmp_path, text)
    assert loaded(tmp_path, text + "\n  private_hosts: [keycloak.auth.svc]").bearers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("type: saml", "auth.methods.0"),
        ("type: bearer, issuer: 'https://i.example'", "audience"),
        ("type: bearer, issuer: 'https://i.example', audience: []", "audience"),
        ("type: bearer, audience: a", "issuer"),
        ("type: bearer, issuer: 'http://i.example', audience: a", "https"),
        ("type: bearer, issuer: 'i.example', audience: a", "https"),
        ("type: bearer, issuer: 'https://u:p@i.example', audience: a", "credentials"),
        ("type: bearer, issuer: 'https://i.example', audience: a, jwks_url: 'http://i.example/keys'", "jwks_url"),
        ("type: bearer, issuer: 'https://i.example', audience: a, algorithms: [none]", "algorithms"),
        ("type: bearer, issuer: 'https://i.example', audience: a, algorithms: [HS256]", "algorithms"),
        ("type: bearer, issuer: 'https://i.example', audience: a, algorithms: []", "algorithms"),
        ("type: bearer, issuer: 'https://i.example', audience: a, leeway: 1h", "5m"),
        ("type: bearer, issuer: 'https://i.example', audience: a, jwks_ttl: 2d", "jwks_stale"),
        ("type: bearer, issuer: 'https://i.example', audience: a, claims: {role_map: {x: operator}}", "operator"),
        ("type: bearer, issuer: 'https://i.example', audience: a, claims: {default_role: operator}", "operator"),
        ("type: bearer, issuer: 'https://i.example', audience: a, claims: {roles: null}", "default_role"),
        ("type: oauth2, provider: oidc", "issuer"),
        ("type: oauth2, provider: oidc, issuer: 'https://i.example', scopes: [email]", "openid"),
        ("type: oauth2, provider: github, name: 'Not A Name'", "name"),
        ("type: oauth2, provider: github, signup: tenant, signup_tier: nothing", "signup_tier"),
        ("type: api_key, header: Authorization", "meaning of its own"),
    ],
)
def test_what_is_wrong_stops_the_start_and_is_named(tmp_path: Path, text: str, says: str):
    with pytest.raises(SettingsError, match=says):
        loaded(tmp_path, method(text))


def test_no_two_methods_are_of_one_issuer(tmp_path: Path):
    one = "{type: bearer, issuer: 'https://i.example', audience: a}"
    with pytest.raises(SettingsError, match="issuer of two"):
        loaded(tmp_path, f"auth:\n  methods: [{one}, {one}]")
