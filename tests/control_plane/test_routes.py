"""Which row a path is in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amplifier_api_server.control_plane.operations import OPERATIONS
from amplifier_api_server.control_plane.routes import Match, Route, RouteTable, WrongMethod

TABLE = RouteTable(
    [
        Route("GET", "/v1/sessions", OPERATIONS["health"]),
        Route("POST", "/v1/sessions", OPERATIONS["health"]),
        Route("GET", "/v1/sessions/{session_id}", OPERATIONS["health"]),
        Route("GET", "/v1/sessions/{session_id}/executions/{request_id}", OPERATIONS["health"]),
        Route("GET", "/v1/sessions/special", OPERATIONS["health"]),
        Route("GET", "/health", OPERATIONS["health"]),
    ]
)


def test_a_path_finds_its_row_and_its_parameters():
    found = TABLE.match("GET", "/v1/sessions/sess_1/executions/req_2")
    assert isinstance(found, Match)
    assert found.params == {"session_id": "sess_1", "request_id": "req_2"}


def test_a_literal_segment_wins():
    found = TABLE.match("GET", "/v1/sessions/special")
    assert isinstance(found, Match)
    assert found.route.template == "/v1/sessions/special"


def test_a_name_may_be_encoded_as_clients_do():
    found = TABLE.match("GET", "/v1/sessions/foundation%3Abase")
    assert isinstance(found, Match)
    assert found.params == {"session_id": "foundation:base"}


def test_another_method_says_which_there_are():
    assert TABLE.match("DELETE", "/v1/sessions") == WrongMethod(("GET", "HEAD", "OPTIONS", "POST"))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/v1",
        "/v2/sessions",
        "/v1/sessions/%00",
        "/v1/sessions/a%2Fb",
        "/v1/sessions/a b",
        "/v1/sessions/" + "a" * 200,
        "/v1/sessions/x/executions",
        "/v1/sessions/x/executions/y/z",
        "/v1//sessions",
        "/v1/sessions/\xff",
        "/{}",
        "/v1/sessions/{}",
        "/v1/sessions/ ",
        "/v1/sessions/x/executions/{}",
    ],
)
def test_what_is_in_no_row_does_not_exist(path):
    found = TABLE.match("GET", path)
    assert found is None


@given(st.text())
def test_no_path_breaks_it(path):
    TABLE.match("GET", path)


def test_two_rows_for_one_path_are_a_mistake():
    with pytest.raises(ValueError, match="two rows"):
        RouteTable([Route("GET", "/a/{x}", OPERATIONS["health"]), Route("GET", "/a/{y}", OPERATIONS["health"])])
