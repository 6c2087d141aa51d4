"""Hostile bodies of inference requests: too many, too long, too deep, too costly."""

from __future__ import annotations

from typing import Any

from tests.real_engine.abuse import CHAT, COMPLETIONS, RESPONSES, Abuse, Answers, Site, encoded

MIB = 1 << 20
MESSAGES = "/v1/messages"


def completion(**more: Any) -> dict[str, Any]:
    return {"model": "base", "prompt": "a", "max_tokens": 4, **more}


def chat(content: Any = "a", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {"model": "base", "messages": messages, "max_tokens": 4, **more}


def response(**more: Any) -> dict[str, Any]:
    return {"model": "base", "input": "a", "max_output_tokens": 4, **more}


def refused(name: str, path: str, body: Any, param: str | None, times: int = 1) -> Abuse:
    """Return an abuse that sends a body, several times at once, and gets a 400 for each."""

    async def send(site: Site) -> Answers:
        return await site.post_all(path, [encoded(body)] * times)

    return Abuse(name, send, 400, param)


async def name_of_4_mib(site: Site) -> Answers:
    return [await site.post(CHAT, chat(model="m" * 4 * MIB))]


def with_schema(schema: Any) -> dict[str, Any]:
    wrapped = {"name": "x", "schema": schema}
    return chat(response_format={"type": "json_schema", "json_schema": wrapped})


def structured(**constraint: Any) -> dict[str, Any]:
    return completion(structured_outputs=constraint)


def function(number: int, **parameters: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters}
    return {"type": "function", "function": {"name": f"f{number}", "parameters": schema}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


LONG_STRINGS = {
    "type": "object",
    "properties": {
        f"p{i}": {"type": "string", "minLength": 1, "maxLength": 20001 + i} for i in range(10)
    },
}
MANY_VALUES = {"enum": [f"value number {i}" for i in range(20000)]}
PICTURE = "data:image/png;base64," + "A" * (6 * MIB)
ENDLESS = {"max_tokens": 2000, "ignore_eos": True}

TOO_MANY = [
    refused("n: 16384", COMPLETIONS, completion(n=16384, **ENDLESS), "n", 10),
    refused("n: 16384 of a chat", CHAT, chat(n=16384, **ENDLESS), "n", 10),
    refused("1,000 prompts with n: 32", COMPLETIONS, completion(prompt=["a"] * 1000, n=32), "p"),
    refused("6,000 wrong items of input", RESPONSES, response(input=[{"a": 1}] * 6000), "input"),
    refused("4,000 wrong items, ten times", RESPONSES, response(input=[{"a": 1}] * 4000), "i", 10),
    refused("4,000 wrong messages, ten times", CHAT, chat(messages=[{}] * 4000), "messages", 10),
    refused("20,000 parts of a message", CHAT, chat([{"type": "text"}] * 20_000), "messages[0]"),
    refused("4,000 wrong parts of a message", CHAT, chat([{"type": "x"}] * 4000), "messages"),
    refused("1,000 tools", CHAT, chat(tools=[function(i) for i in range(1000)]), "tools"),
    refused("a million brackets", CHAT, b'{"messages":' + b"[" * 1_000_000, None),
    refused("8 MiB of empty lists", CHAT, b'{"a":[' + b"[]," * (8 * MIB // 3 - 10) + b"[]]}", None),
    refused("tools of 200 levels", CHAT, chat(tools=[function(1, a=nested(100))]), "tools"),
    refused("input of 60 levels", RESPONSES, response(input=[nested(30)] * 1000), "input"),
]
TOO_LONG = [
    refused("an input of 7.5 MiB", RESPONSES, response(input="word " * (3 * MIB // 2)), "input", 5),
    refused("a prompt of 1.5 MiB", COMPLETIONS, completion(prompt="word " * 300_000), "prompt", 5),
    refused("100,000 words", CHAT, chat("word " * 100_000), "messages", 10),
    refused("words to count", MESSAGES + "/count_tokens", chat("word " * 20_000), None, 10),
    refused("4,096 messages", CHAT, chat(messages=[*chat()["messages"]] * 4096), "messages"),
    refused("4,000 parts of text", CHAT, chat([{"type": "text", "text": "abc " * 8}] * 4000), "m"),
    refused(
        "an image of 6 MiB",
        CHAT,
        chat([{"type": "image_url", "image_url": {"url": PICTURE}}]),
        "m",
        5,
    ),
    refused("stop strings of 2 MiB", COMPLETIONS, completion(stop=["x" * MIB] * 2), "stop"),
    Abuse("a model's name of 4 MiB", name_of_4_mib, 404, "model"),
]
EXTREMES = [
    refused(f"{name}: {str(value)[:12]}", path, body(**{name: value}, **more), name)
    for path, body, name, value, more in (
        (COMPLETIONS, completion, "logprobs", 10**9, {}),
        (COMPLETIONS, completion, "logprobs", -7, {}),
        (COMPLETIONS, completion, "prompt_logprobs", 10**9, {}),
        (COMPLETIONS, completion, "prompt_logprobs", -1, {}),
        (COMPLETIONS, completion, "logprob_token_ids", list(range(50_000)), {}),
        (CHAT, chat, "top_logprobs", 10**9, {"logprobs": True}),
        (CHAT, chat, "prompt_logprobs", 10**9, {}),
        (RESPONSES, response, "top_logprobs", 10**9, {"include": ["message.output_text.logprobs"]}),
        (COMPLETIONS, completion, "truncate_prompt_tokens", 10**12, {}),
        (COMPLETIONS, completion, "truncate_prompt_tokens", -7, {}),
        (COMPLETIONS, completion, "max_tokens", 10**30, {}),
        (COMPLETIONS, completion, "min_tokens", 10**9, {}),
        (COMPLETIONS, completion, "seed", 10**30, {}),
        (COMPLETIONS, completion, "top_k", 10**30, {}),
        (COMPLETIONS, completion, "temperature", -1, {}),
        (COMPLETIONS, completion, "stop", ["x"] * 100_000, {}),
        (COMPLETIONS, completion, "stop_token_ids", list(range(300_000)), {}),
        (COMPLETIONS, completion, "stop_token_ids", [10**12], {}),
        (COMPLETIONS, completion, "bad_words", [f"w{i}" for i in range(100_000)], {}),
        (COMPLETIONS, completion, "bad_words", [f"w{i}" for i in range(4000)], {}),
        (COMPLETIONS, completion, "bad_words", ["word " * 200_000], {}),
        (COMPLETIONS, completion, "logit_bias", {str(i): 1 for i in range(40_000)}, {}),
        (COMPLETIONS, completion, "logit_bias", {"999999999": 1}, {}),
        (COMPLETIONS, completion, "allowed_token_ids", list(range(300_000)), {}),
        (COMPLETIONS, completion, "allowed_token_ids", [10**12], {}),
        (COMPLETIONS, completion, "allowed_token_ids", [-1], {}),
        (COMPLETIONS, completion, "prompt", [10**12], {}),
        (COMPLETIONS, completion, "prompt", [999_999_999], {}),
        (COMPLETIONS, completion, "prompt", [-1], {}),
    )
]
GRAMMARS = [
    refused("20,000 enum values, ten times", CHAT, with_schema(MANY_VALUES), "response_format", 10),
    refused(
        "ten strings of 20,000 letters", CHAT, with_schema(LONG_STRINGS), "response_format", 10
    ),
    refused("20,000 choices", COMPLETIONS, structured(choice=MANY_VALUES["enum"]), "structured_o"),
    refused(
        "a regex that repeats 100,000 times", COMPLETIONS, structured(regex="a{1,100000}"), "s"
    ),
    refused("a regex of 1 MiB", COMPLETIONS, structured(regex="a?" * (MIB // 2)), "structured_o"),
    refused("a grammar of 1 MiB", COMPLETIONS, structured(grammar='root ::= "a"' * 80_000), "s"),
    refused("tools with 20,000 values", CHAT, chat(tools=[function(1, a=MANY_VALUES)]), "tools"),
]
