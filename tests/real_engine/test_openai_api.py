"""OpenAI's API through OpenAI's own client, on the real engine with the demo adapters."""

import asyncio
import json
import time
from pathlib import Path

from server.engine.device.defaults import CPU_STEP_TOKENS
from server.process.demo import DEMO_DIR
from tests.real_engine.questions import (
    BRONCHITIS,
    BRONCHITIS_ANSWER,
    FRANCE,
    LIGHTS,
    LIGHTS_ANSWER,
    ask,
    say,
)
from tests.real_engine.running_server import RunningServer


def test_chat_with_base_and_adapters(server: RunningServer) -> None:
    base = ask(server, "base", FRANCE)
    assert base.model == "base"
    assert "Paris" in base.choices[0].message.content
    lights = ask(server, "smart-home", LIGHTS)
    assert lights.model == "default/smart-home@1"
    assert json.loads(lights.choices[0].message.content) == LIGHTS_ANSWER
    assert lights.choices[0].finish_reason == "stop"
    assert lights.usage.prompt_tokens > 0
    bronchitis = ask(server, "icd10-chapter", BRONCHITIS)
    assert bronchitis.choices[0].message.content == BRONCHITIS_ANSWER


def test_headers_name_the_version(server: RunningServer) -> None:
    raw = server.client().chat.completions.with_raw_response.create(
        model="smart-home@1", messages=say(LIGHTS), max_tokens=1
    )
    assert raw.headers["x-adapter-id"] == "default/smart-home"
    assert raw.headers["x-adapter-version"] == "1"
    assert raw.headers["x-adapter-digest"].startswith("sha256:")


def test_streaming_says_the_same(server: RunningServer) -> None:
    whole = ask(server, "smart-home", LIGHTS)
    chunks = list(
        ask(server, "smart-home", LIGHTS, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {"default/smart-home@1"}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completions(server: RunningServer) -> None:
    answer = server.client().completions.create(
        model="base", prompt="One, two, three, four,", max_tokens=4, temperature=0, stop=["six"]
    )
    assert "five" in answer.choices[0].text
    assert "six" not in answer.choices[0].text


def test_logprobs_and_n(server: RunningServer) -> None:
    answer = ask(
        server, "base", "Tell me a word.", n=2, temperature=1, logprobs=True, top_logprobs=2
    )
    assert len(answer.choices) == 2
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_a_seed_repeats_an_answer(server: RunningServer) -> None:
    """With `n=1`: with AMX, vLLM's own products depend on how many prompts a step has."""
    first, second = (
        ask(server, "base", "Tell me a word.", seed=7, temperature=1) for _ in range(2)
    )
    assert first.choices[0].message.content == second.choices[0].message.content


def test_a_seed_repeats_an_answer_to_a_prompt_of_several_steps(server: RunningServer) -> None:
    text = "Count: " + "one two three " * 250
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 12}
    first, second = (ask(server, "base", text, **options) for _ in range(2))
    assert first.usage.prompt_tokens > 2 * CPU_STEP_TOKENS
    assert first.choices[0].message.content == second.choices[0].message.content


def test_json_schema(server: RunningServer) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = ask(
        server,
        "base",
        "Give me a person's name and age.",
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": schema},
        },
        max_tokens=60,
    )
    person = json.loads(answer.choices[0].message.content)
    assert isinstance(person["name"], str)
    assert isinstance(person["age"], int)


def test_tool_call(server: RunningServer) -> None:
    function = {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    }
    answer = ask(
        server,
        "base",
        "What's the weather in Paris?",
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_responses(server: RunningServer) -> None:
    answer = server.client().responses.create(
        model="smart-home", input=LIGHTS, temperature=0, max_output_tokens=40
    )
    assert answer.model == "default/smart-home@1"
    assert json.loads(answer.output_text) == LIGHTS_ANSWER


def test_anthropics_messages(server: RunningServer) -> None:
    body = {"model": "smart-home", "max_tokens": 40, "temperature": 0, "messages": say(LIGHTS)}
    answer = server.admin("POST", "/v1/messages", json=body).json()
    assert answer["model"] == "default/smart-home@1"
    assert json.loads(answer["content"][0]["text"]) == LIGHTS_ANSWER


def test_models(server: RunningServer) -> None:
    models = {model.id: model for model in server.client().models.list()}
    assert {"base", "smart-home", "icd10-chapter"} <= set(models)
    assert (models["smart-home"].model_extra or {})["adapter"]["version"] == 1
    smart_home = server.client().models.retrieve("smart-home@1")
    assert (smart_home.model_extra or {})["parent"] == "base"


async def test_base_and_two_adapters_batched_together_answer_each_its_own(
    server: RunningServer,
) -> None:
    """On vLLM's stock CPU operators the base rows get the last slot's adapter: this fails there."""
    questions = [("base", FRANCE), ("smart-home", LIGHTS), ("icd10-chapter", BRONCHITIS)]
    client = server.async_client()

    async def one(model: str, text: str) -> str:
        answer = await client.chat.completions.create(
            model=model, messages=say(text), temperature=0, max_tokens=30
        )
        return answer.choices[0].message.content or ""

    answers = await asyncio.gather(*(one(*question) for question in questions * 6))
    for index in range(0, len(answers), 3):
        base, lights, bronchitis = answers[index : index + 3]
        assert "Paris" in base
        assert json.loads(lights) == LIGHTS_ANSWER
        assert bronchitis == BRONCHITIS_ANSWER


async def test_prompt_logprobs_of_adapters_do_not_kill_the_engine(server: RunningServer) -> None:
    """With a wrapped head vLLM dies of it: the LoRA rows are those sampled, not the prompt's."""
    client = server.async_client()

    async def one(index: int) -> None:
        await client.completions.create(
            model=("base", "smart-home", "icd10-chapter")[index % 3],
            prompt="word " * (5 + 67 * index),
            max_tokens=4,
            extra_body={"prompt_logprobs": 0} if index % 4 else {},
        )

    await asyncio.gather(*(one(index) for index in range(9)))
    assert server.status("/readyz") == 200


def test_an_adapter_registered_a_second_ago_answers_its_first_request(
    server: RunningServer,
) -> None:
    name = f"fresh-{time.time_ns()}"
    files = [
        ("files", (file.name, file.read_bytes()))
        for file in Path(DEMO_DIR / "smart-home").iterdir()
        if file.name.startswith("adapter_")
    ]
    registered = server.admin("POST", "/admin/adapters?wait=true", data={"name": name}, files=files)
    assert registered.status_code == 201
    answer = ask(server, name, LIGHTS)
    assert answer.model == f"default/{name}@1"
    assert json.loads(answer.choices[0].message.content) == LIGHTS_ANSWER
