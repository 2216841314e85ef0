"""Whose address a request came from, and as whom it is counted."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.client_addresses import UNKNOWN, TrustedProxies, network_of, parse_network
from amplifier_api_server.control_plane.settings import SettingsError, load
from tests.hostile_runtime import attacked

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8", "192.0.2.7"])


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("198.51.100.4", "198.51.100.4"),
        ("::ffff:198.51.100.4", "198.51.100.4"),
        ("::FFFF:c633:6404", "198.51.100.4"),
        ("2001:db8:1:2::3", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::3", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        ("/run/some.sock", UNKNOWN),
        ("198.51.100.4.", UNKNOWN),
        ("198.51.100.04", UNKNOWN),
        ("x" * 30_000, UNKNOWN),
    ],
)
def test_an_address_counts_as_its_network(address, network):
    assert network_of(address) == network


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_whoever_has_a_64_is_one(address, host):
    other = IPv6Address((int(address) >> 64 << 64) | host)
    if not (address.ipv4_mapped or other.ipv4_mapped):
        assert network_of(str(address)) == network_of(str(other))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_the_same_whichever_way_it_came(address):
    assert network_of(str(address)) == network_of(f"::ffff:{address}") == str(IPv4Address(address))


@given(st.text())
def test_whatever_is_written_has_a_network(text):
    assert isinstance(network_of(text), str)


@pytest.mark.parametrize(
    ("peer", "lines", "client"),
    [
        ("203.0.113.9", ["198.51.100.4"], "203.0.113.9"),  # anybody can write a header
        ("", ["198.51.100.4"], ""),  # the other end has no address: it is no proxy that was named
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.4"], "198.51.100.4"),
        ("::ffff:10.0.0.1", ["198.51.100.4"], "198.51.100.4"),
        ("192.0.2.7", ["::ffff:198.51.100.4"], "198.51.100.4"),
        ("fd00::1", ["2001:db8::4"], "2001:db8::4"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.4"], "198.51.100.4"),  # what the client wrote before is not believed
        ("10.0.0.1", ["1.1.1.1, 198.51.100.4,10.9.9.9 ,\t192.0.2.7"], "198.51.100.4"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.4", "10.9.9.9"], "198.51.100.4"),  # several lines are one list
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # from within
        ("10.0.0.1", ["198.51.100.4:4711"], "198.51.100.4"),
        ("10.0.0.1", ["[2001:db8::4]:4711"], "2001:db8::4"),
        ("10.0.0.1", ["[2001:db8::4]"], "2001:db8::4"),
        ("10.0.0.1", ["198.51.100.4, garbage, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.4, , 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.4, [::1"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.4, [::1]x"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.4, 1.1.1.1:http"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.4, \xff\x00"], "10.0.0.1"),
    ],
)
def test_a_trusted_proxy_and_nobody_else_names_the_client(peer, lines, client):
    headers = [(b"host", b"x"), *((b"x-forwarded-for", line.encode("latin-1")) for line in lines)]
    assert PROXIES.client_of(peer, headers) == client


def test_a_list_without_end_is_not_walked_to_its_end():
    lines = [(b"x-forwarded-for", b"198.51.100.4, " + b", ".join([b"10.0.0.2"] * 3000))]
    assert PROXIES.client_of("10.0.0.1", lines) == "10.0.0.2"


@given(st.lists(st.binary()))
def test_whatever_is_forwarded_nobody_fails(lines):
    assert PROXIES.client_of("10.0.0.1", [(b"x-forwarded-for", line) for line in lines])


def test_networks_are_written_as_networks():
    assert str(parse_network("::ffff:10.0.0.0/104")) == "10.0.0.0/8"
    for wrong in ("10.0.0.1/8", "proxy.example.com", ""):
        with pytest.raises(SettingsError, match=r"server\.trusted_proxies.*should be an address, or a network"):
            load(None, {}, server={"trusted_proxies": [wrong]})


@pytest.mark.parametrize(("trusted", "recorded"), [(["127.0.0.1"], "198.51.100.4"), ([], "127.0.0.1")])
async def test_who_changed_something_is_recorded_with_the_clients_address(tmp_path, trusted, recorded):
    async with attacked(tmp_path, server={"trusted_proxies": trusted}) as plane, plane.client() as client:
        forwarded = {"X-Forwarded-For": "1.1.1.1, 198.51.100.4"}
        made = await client.post("/v1/keys", json={"name": "k", "role": "readonly"}, headers=forwarded)
        assert made.status_code == 201, made.text
        entries = (await client.get("/v1/audit")).json()["audit_entries"]
        assert [one["address"] for one in entries if one["action"] == "createKey"][:1] == [recorded]
