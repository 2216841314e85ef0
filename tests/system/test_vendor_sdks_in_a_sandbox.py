"""The vendors' own SDKs, used by a program that the bash tool runs in a real sandbox: they find the gateway by their
environment, speak each dialect with it, and what they use is the tenant's.
"""

import json
import textwrap

import pytest

_OPENAI = "import openai; client = openai.OpenAI(max_retries=0, timeout=20)"
_ANTHROPIC = "import anthropic; client = anthropic.Anthropic(max_retries=0, timeout=20)"
_HELLO = '[{"role": "user", "content": "stream 2000"}]'
DIALECTS = {
    "chat": f"""
        {_OPENAI}
        answer = client.chat.completions.create(model=MODEL, messages={_HELLO})
        say(len(answer.choices[0].message.content), answer.usage.prompt_tokens, answer.usage.completion_tokens)
        """,
    "chat, streamed": f"""
        {_OPENAI}
        options = {{"include_usage": True}}
        chunks = list(client.chat.completions.create(model=MODEL, messages={_HELLO}, stream=True, stream_options=options))
        text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        say(len(text), chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)
        """,
    "responses": f"""
        {_OPENAI}
        answer = client.responses.create(model=MODEL, input={_HELLO})
        say(len(answer.output_text), answer.usage.input_tokens, answer.usage.output_tokens)
        """,
    "responses, streamed": f"""
        {_OPENAI}
        events = list(client.responses.create(model=MODEL, input={_HELLO}, stream=True))
        text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
        say(len(text), events[-1].response.usage.input_tokens, events[-1].response.usage.output_tokens)
        """,
    "messages": f"""
        {_ANTHROPIC}
        answer = client.messages.create(model=MODEL, max_tokens=4000, messages={_HELLO})
        say(len(answer.content[-1].text), answer.usage.input_tokens, answer.usage.output_tokens)
        """,
    "messages, streamed": f"""
        {_ANTHROPIC}
        with client.messages.stream(model=MODEL, max_tokens=4000, messages={_HELLO}) as stream:
            text = "".join(stream.text_stream)
            usage = stream.get_final_message().usage
        say(len(text), usage.input_tokens, usage.output_tokens)
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
    before = totals(me)
    (chars, sent, received), answer = run(me, session, DIALECTS[dialect], model)
    assert chars >= received >= 2000
    assert sent > 0
    after = totals(me)
    counted = {name: after[name] - before[name] for name in ("prompt_tokens", "completion_tokens")}
    assert received < counted["completion_tokens"] < received + 1000, "and the turn's own two calls"
    assert counted["prompt_tokens"] > sent
    assert {name: answer["usage"][name] for name in counted} == counted, "the execution has used it"
