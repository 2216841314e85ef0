"""Accept headers: which of what is offered a client wants, and how much."""

import pytest

from amplifier_api_server.control_plane.media_types import preferred

JSON, EVENTS, HTML = "application/json", "text/event-stream", "text/html"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", [JSON, EVENTS, HTML]),
        ("*/*", [JSON, EVENTS, HTML]),
        ("text/*", [EVENTS, HTML]),
        ("text/html, */*", [HTML, JSON, EVENTS]),
        ("text/event-stream, application/json", [EVENTS, JSON]),
        ("text/event-stream;q=0.5, application/json;q=0.9", [JSON, EVENTS]),
        ("text/event-stream; Q=0.5 , Application/JSON ;q=0.500", [EVENTS, JSON]),
        ("*/*;q=0.1, text/event-stream", [EVENTS, JSON, HTML]),
        ("application/json;q=0, */*", [EVENTS, HTML]),
        ("*/*, application/json;q=0.000", [EVENTS, HTML]),
        ("application/*;q=0.2, text/html;q=0.3, application/json;q=0.1", [HTML, JSON]),
        ("application/json;charset=utf-8;q=0.1, text/html;level=1;q=0.2", [HTML, JSON]),
        ('multipart/mixed;boundary="a,text/html;q=1", text/event-stream', [EVENTS]),
        ("application/json;q=2, text/html;q=high", [JSON, HTML]),
        (",;, application/json ,,", [JSON]),
        ("image/png", []),
    ],
)
def test_weights_then_order_then_the_servers_own_say_what_is_preferred(accept, wanted):
    assert preferred([(b"accept", accept.encode())], (JSON, EVENTS, HTML)) == wanted


def test_several_headers_are_one_list():
    headers = [(b"accept", b"text/html;q=0.1"), (b"x-other", b"*/*"), (b"accept", b"application/json")]
    assert preferred(headers, (HTML, JSON, EVENTS)) == [JSON, HTML]
    assert preferred([], (HTML, JSON)) == [HTML, JSON]
