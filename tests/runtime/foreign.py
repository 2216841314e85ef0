"""Modules from outside, written as the ecosystem writes them: each constant is the code of one package."""

# As the ecosystem's simplest loop tells it: tool events without ids, errors by type and words, blocks when they are whole.
LOOP = """
import asyncio
from amplifier_core import ChatRequest, Message, ToolResult, ToolSpec

async def mount(coordinator, config=None):
    await coordinator.mount("orchestrator", Loop(config or {}))

class Loop:
    def __init__(self, config):
        self.with_ids = config.get("with_ids")
        self.emits_blocks = config.get("emits_blocks", True)
        self.tries = config.get("tries", 1)

    async def execute(self, prompt, context, providers, tools, hooks, coordinator=None, **more):
        await hooks.emit("prompt:submit", {"prompt": prompt})
        await context.add_message({"role": "user", "content": prompt})
        name, provider = next(iter(providers.items()))
        while True:
            await hooks.emit("provider:request", {"provider": name})
            messages = [Message(**m) for m in await context.get_messages_for_request(provider=provider)]
            specs = [ToolSpec(name=t.name, description=t.description, parameters=t.input_schema) for t in tools.values()]
            try:
                response = await provider.complete(ChatRequest(messages=messages, tools=specs or None))
            except Exception as error:
                status = getattr(error, "status_code", None)
                told = {"type": type(error).__name__, "msg": str(error)}
                await hooks.emit("provider:error", {"provider": name, "error": told, "status_code": status})
                self.tries -= 1
                if self.tries:
                    continue
                raise
            if coordinator.cancellation.is_cancelled:
                return ""
            for index, block in enumerate(response.content if self.emits_blocks else []):
                await hooks.emit("content_block:start", {"block_type": block.type, "block_index": index})
                await hooks.emit("content_block:end", {"block_index": index, "block": block.model_dump()})
            text = "".join(b.text for b in response.content if b.type == "text")
            wanted = provider.parse_tool_calls(response)
            if not wanted:
                await context.add_message({"role": "assistant", "content": text})
                await hooks.emit("orchestrator:complete", {"orchestrator": "loop-outside", "turn_count": 1})
                return text
            kept = [{"id": c.id, "tool": c.name, "arguments": c.arguments} for c in wanted]
            await context.add_message({"role": "assistant", "content": text, "tool_calls": kept})
            done = await asyncio.gather(*(self.run(c, tools, hooks, coordinator) for c in wanted))
            for call, content in zip(wanted, done):
                await context.add_message({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})

    async def run(self, call, tools, hooks, coordinator):
        told = {"tool_name": call.name, "tool_input": call.arguments}
        if self.with_ids:
            told["tool_call_id"] = call.id
        answer = await hooks.emit("tool:pre", told)
        if (await coordinator.process_hook_result(answer, "tool:pre", call.name)).action == "deny":
            return "denied"
        try:
            result = await tools[call.name].execute(call.arguments)
        except Exception as error:
            told.pop("tool_input")
            await hooks.emit("tool:error", {**told, "error": {"type": type(error).__name__, "msg": str(error)}})
            return "failed"
        await hooks.emit("tool:post", {**told, "result": result.model_dump() if self.with_ids else result})
        return result.get_serialized_output()
"""

# `streams` tells deltas by hooks, thinking among them; without it nothing is told before the answer is whole.
PROVIDER = """
from amplifier_core import ChatResponse, ProviderInfo, TextBlock, ToolCall

async def mount(coordinator, config=None):
    await coordinator.mount("providers", Provider(coordinator, config or {}), name="outside")

class Provider:
    name = "outside"

    def __init__(self, coordinator, config):
        self.coordinator = coordinator
        self.finish_reason = config.get("finish_reason")
        self.streams = config.get("streams")
        self.fails = config.get("fails")

    def get_info(self):
        return ProviderInfo(id="outside", display_name="Outside")

    async def list_models(self):
        return []

    def parse_tool_calls(self, response):
        return list(response.tool_calls or [])

    async def complete(self, request, **more):
        emit = self.coordinator.hooks.emit
        if self.fails:
            error = RuntimeError(self.fails.pop(0))
            error.status_code = 402
            raise error
        if self.streams:
            for index, kind, text in ((0, "thinking", "hm"), (1, "text", "from "), (1, "text", "outside")):
                await emit("llm:stream_block_delta", {"block_index": index, "block_type": kind, "text": text})
        return ChatResponse(content=[TextBlock(text="from outside")], finish_reason=self.finish_reason)
"""

TOOLS = """
import asyncio
from amplifier_core import ToolResult

async def mount(coordinator, config=None):
    for name in ("echo", "break"):
        await coordinator.mount("tools", Tool(name), name=name)

class Tool:
    description = "x"
    input_schema = {"type": "object", "properties": {}}

    def __init__(self, name):
        self.name = name

    async def execute(self, given):
        if self.name == "break":
            raise ValueError("broken")
        if given.get("wait"):
            await asyncio.sleep(given["wait"])
        return ToolResult(success=not given.get("refuse"), output=given.get("say"), error=given.get("refuse"))
"""

# Forgets all but the newest messages for good, as it is asked for a request.
CONTEXT = """
from amplifier_core import Message

async def mount(coordinator, config=None):
    kind = Tight if (config or {}).get("slots") else Context
    await coordinator.mount("context", kind(config or {}))

class Base:
    __slots__ = ("config", "messages")

    def __init__(self, config):
        self.config = config
        self.messages = []

    async def add_message(self, message):
        self.messages.append(Message(**message) if self.config.get("objects") else message)

    async def get_messages(self):
        return list(self.messages)

    async def set_messages(self, messages):
        self.messages = list(messages)

    async def clear(self):
        self.messages = []

    async def get_messages_for_request(self, token_budget=None, provider=None):
        if keep := self.config.get("keep"):
            self.messages = self.messages[-keep:]
        return [m if isinstance(m, dict) else m.model_dump(exclude_none=True) for m in self.messages]

class Tight(Base):
    __slots__ = ()

class Context(Base):
    pass
"""

HOOK = """
async def mount(coordinator, config=None):
    async def handler(event, data):
        from amplifier_core import HookResult
        config_ = config or {}
        if config_.get("raises"):
            raise ValueError("a hook's trouble")
        if config_.get("asks"):
            provider = coordinator.get("providers")["openai"]
            from amplifier_core import ChatRequest, Message
            await provider.complete(ChatRequest(messages=[Message(role="system", content="You are the namer.")]))
        return HookResult(action=config_.get("action", "continue"), reason="no")
    for event in (config or {}).get("events", ["tool:pre"]):
        coordinator.hooks.register(event, handler, name=f"hook-outside-{event}")
"""
