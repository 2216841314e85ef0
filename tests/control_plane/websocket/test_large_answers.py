"""What is too large for a message is refused as such, and the connection goes on."""

import pytest

from tests.control_plane.sessions.test_large_transcripts import filled, said


@pytest.mark.parametrize("count", [2, 3])
async def test_a_document_of_more_than_4_mib_is_asked_for_by_rest(door, wire, count):
    session_id, _ = await filled(door.plane, said(1_500_000, count))
    answer = await wire.ask("call", operation="exportSession", params={"session_id": session_id})
    if count == 2:
        assert (answer["type"], len(answer["data"]["messages"])) == ("result", 2)
    else:
        assert (answer["type"], answer["code"], answer["status"]) == ("error", "answer_too_large", 413)
        assert answer["limit_bytes"] == 4 * 1024 * 1024
    assert len(door.plane.app.services.streams.all()) == 1, "the connection itself"
    assert (await wire.ask("ping"))["type"] == "pong"
