"""The vendors' own SDKs, used by a program that the bash tool runs in a real sandbox: they find the gateway by their
environment, speak each dialect with it, and what they use is the tenant's.
"""

import json
import textwrap

import pytest

_OPENAI = "import openai; client = openai.OpenAI(max_retries=0, timeout=20)"
_ANTHROPIC = "import anthropic; client = anthropic.Anthropic(max_retries=0, timeout=20)"
_HELLO = '[{"role": "user", "content": "stream 12"}]'
DIALECTS = {
    "chat": f"""
        {_OPENAI}
        answer = client.chat.completions.create(model=MODEL, messages={_HELLO})
        say(answer.choices[0].message.content, answer.usage.prompt_tokens, answer.usage.completion_tokens)
        """,
    "chat, streamed": f"""
        {_OPENAI}
        options = {{"include_usage": True}}
        chunks = list(client.chat.completions.create(model=MODEL, messages={_HELLO}, stream=True, stream_options=options))
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        say(text, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)
        """,
    "responses": f"""
        {_OPENAI}
        answer = client.responses.create(model=MODEL, input={_HELLO})
        say(answer.output_text, answer.usage.input_tokens, answer.usage.output_tokens)
        """,
    "responses, streamed": f"""
        {_OPENAI}
        events = list(client.responses.create(model=MODEL, input={_HELLO}, stream=True))
        text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
        say(text, events[-1].response.usage.input_tokens, events[-1].response.usage.output_tokens)
        """,
    "messages": f"""
        {_ANTHROPIC}
        answer = client.messages.create(model=MODEL, max_tokens=100, messages={_HELLO})
        say(answer.content[-1].text, answer.usage.input_tokens, answer.usage.output_tokens)
        """,
    "messages, streamed": f"""
        {_ANTHROPIC}
        with client.messages.stream(model=MODEL, max_tokens=100, messages={_HELLO}) as stream:
            text = "".join(stream.text_stream)
            usage = stream.get_final_message().usage
        say(text, usage.input_tokens, usage.output_tokens)
        """,
}
_PROGRAM = """
import json, sys
sys.path.append({packages!r})
MODEL = {model!r}
def say(*found):
    print("FOUND" + json.dumps(found))
"""


def run(me, session, code, model):
    """What the program said, and the whole execution that it ran in."""
    import openai

    packages = openai.__file__.rpartition("/openai/")[0]
    program = _PROGRAM.format(packages=packages, model=model) + textwrap.dedent(code)
    command = f"{{ python3 - || true; }} <<'THE_END'\n{program}\nTHE_END"
    answer = me.ask(session, "use bash " + json.dumps({"command": command}))
    (call,) = answer["tool_calls"]
    assert "FOUND" in call["output"]["stdout"], call
    return json.loads(call["output"]["stdout"].partition("FOUND")[2]), answer


def totals(me):
    return me.usage()["totals"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_each_dialect_is_answered_and_counted(me, dialect):
    session = me.session()
    model = me.get(f"/v1/sessions/{session}")["model"]
    run(me, session, "say(1)", model)
    idle = totals(me)
    (text, sent, received), _ = run(me, session, DIALECTS[dialect], model)
    assert text
    assert sent > 0
    assert received >= 12
    used = totals(me)
    assert used["model_calls"] - idle["model_calls"] == 3, "the turn's own two, and the program's"
    assert used["output_tokens"] - idle["output_tokens"] >= received
