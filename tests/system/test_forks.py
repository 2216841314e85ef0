"""A session is forked in a real sandbox: what it wrote goes along, and the two go their own ways."""

import json


def bash(me, session, command):
    answer = me.ask(session, "use bash " + json.dumps({"command": command}))
    (call,) = answer["tool_calls"]
    return json.dumps(call["output"])


def test_a_fork_has_the_files_the_transcript_and_the_todo_list(me):
    session = me.session()
    bash(me, session, "mkdir -p deep/er && echo forty-two > deep/er/answer && ln -s deep/er/answer link")
    todo = {
        "action": "create",
        "todos": [{"content": "count birds", "status": "pending", "activeForm": "counting birds"}],
    }
    me.ask(session, "use todo " + json.dumps(todo))
    made = me.call("POST", f"/v1/sessions/{session}/fork", {})
    assert made.status == 201, made.body
    fork = made.json["session_id"]
    assert "forty-two" in bash(me, fork, "cat link")
    assert "count birds" in json.dumps(me.ask(fork, 'use todo {"action": "list"}')["tool_calls"])
    bash(me, fork, "echo changed > deep/er/answer")
    assert "forty-two" in bash(me, session, "cat link"), "the source's files are its own"
    assert me.call("GET", f"/v1/sessions/{fork}/messages").json["messages"][0]["content"].startswith("use bash")


def test_an_import_goes_on_in_a_sandbox(me):
    session = me.session()
    me.ask(session, "remember the bird")
    document = me.call("GET", f"/v1/sessions/{session}/export").json
    made = me.call("POST", "/v1/sessions/import", document)
    assert made.status == 201, made.body
    there = made.json["session_id"]
    me.ask(there, "and on")
    contents = [one["content"] for one in me.call("GET", f"/v1/sessions/{there}/messages").json["messages"]]
    assert contents[0] == "remember the bird"
    assert contents[2] == "and on"


def test_files_that_can_never_be_copied_are_no_reason_to_try_again(me):
    session = me.session()
    bash(me, session, "for n in $(seq 140); do mkdir d && cd d; done; touch file")
    refused = me.call("POST", f"/v1/sessions/{session}/fork", {})
    assert (refused.status, refused.code) == (409, "files_not_copiable")
    assert "retry-after" not in refused.headers
    assert "128 deep" in refused.json["detail"]
    assert me.call("POST", f"/v1/sessions/{session}/fork", {"files": False}).status == 201
    bash(me, session, "mv d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d top && rm -r d")
    assert me.call("POST", f"/v1/sessions/{session}/fork", {}).status == 201
