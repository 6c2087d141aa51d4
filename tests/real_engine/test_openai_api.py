"""OpenAI's API through OpenAI's own client, on the real engine with the demo adapters."""

import asyncio
import json
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionMessageParam

from server.engine.cpu import openmp_variables, read_machine
from server.process.demo import DEMO_DIR
from tests.real_engine.running_server import RunningServer

LIGHTS = "Turn on the lights in the kitchen"
LIGHTS_ANSWER = {"intent": "HassTurnOn", "area": "kitchen", "domain": "light"}
BRONCHITIS = "Diagnosis: Acute bronchitis due to rhinovirus"
BRONCHITIS_ANSWER = "Diseases of the respiratory system"
FRANCE = "What is the capital of France?"


def say(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def ask(server: RunningServer, model: str, text: str, **options: object):  # type: ignore[no-untyped-def]
    options = {"temperature": 0, "max_tokens": 40, **options}
    return server.client().chat.completions.create(model=model, messages=say(text), **options)  # type: ignore[call-overload]


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


def test_logprobs_n_and_seed(server: RunningServer) -> None:
    first, second = (
        ask(
            server,
            "base",
            "Tell me a word.",
            n=2,
            seed=7,
            temperature=1,
            logprobs=True,
            top_logprobs=2,
        )
        for _ in range(2)
    )
    assert len(first.choices) == 2
    assert [c.message.content for c in first.choices] == [c.message.content for c in second.choices]
    assert len(first.choices[0].logprobs.content[0].top_logprobs) == 2


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


def test_unknown_model(server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        ask(server, "nobody", LIGHTS)
    assert error.value.code == "model_not_found"


def test_missing_and_wrong_key(server: RunningServer) -> None:
    for key in ("", "wrong"):
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key or "none", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as error:
            client.models.list()
        assert error.value.code == "invalid_api_key"


def test_over_long_prompt(server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        ask(server, "smart-home", "word " * 20_000)
    assert error.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/messages", "messages"), ("/v1/responses", "input"), ("/v1/completions", "prompt")],
)
def test_over_long_prompts_elsewhere(server: RunningServer, path: str, field: str) -> None:
    text = "word " * 20_000
    body = {"model": "smart-home", "max_tokens": 4, field: say(text) if field[0] != "p" else text}
    response = server.admin("POST", path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"max_tokens": 0},
        {"n": 0},
        {"top_p": 7},
        {"messages": "hello"},
        {"messages": []},
    ],
)
def test_bad_parameters(server: RunningServer, options: dict[str, object]) -> None:
    body = {"model": "base", "messages": say("hi"), **options}
    response = server.admin("POST", "/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert isinstance(response.json()["error"]["code"], str)


def test_clients_cannot_steer_the_engine(server: RunningServer) -> None:
    body = {"model": "base", "messages": say("hi"), "max_tokens": 1, "priority": -9}
    headers = {
        "X-Vllm-Priority": "-9",
        "X-data-parallel-rank": "5",
        "Authorization": f"Bearer {server.key}",
    }
    response = httpx.post(
        f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60
    )
    assert response.status_code == 200


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


def test_a_disconnected_stream_gives_its_lease_back(server: RunningServer) -> None:
    stream = ask(
        server, "smart-home", LIGHTS, stream=True, max_tokens=2000, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    assert (
        'loraplex_leases{adapter="default/smart-home"} 1.0' in server.admin("GET", "/metrics").text
    )
    stream.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (
            'loraplex_leases{adapter="default/smart-home"} 0.0'
            in server.admin("GET", "/metrics").text
        ):
            return
        time.sleep(0.1)
    raise AssertionError("the lease of a client that went away was kept")


def test_the_gauge_of_adapters_is_ours_alone(server: RunningServer) -> None:
    ask(server, "smart-home", LIGHTS)
    lines = server.admin("GET", "/metrics").text.splitlines()
    (gauge,) = [line for line in lines if line.startswith("vllm:lora_requests_info")]
    assert "default/smart-home" in gauge


def test_a_client_that_goes_away_gives_its_lease_back(server: RunningServer) -> None:
    body = {"model": "icd10-chapter", "messages": say("hi"), "max_tokens": 2000, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {server.key}"}
    url = f"{server.url}/v1/chat/completions"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=body, headers=headers, timeout=2)
    deadline = time.monotonic() + 10
    gone = 'code="499",endpoint="/v1/chat/completions"'
    while gone not in (text := server.admin("GET", "/metrics").text):
        assert time.monotonic() < deadline, "the request went on without its client"
        time.sleep(0.1)
    assert 'loraplex_leases{adapter="default/icd10-chapter"} 0.0' in text


def test_nothing_of_vllms_own_routes_is_reachable(server: RunningServer) -> None:
    paths = server.admin("GET", "/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/health",
        "/startupz",
        "/admin/garbage",
        "/v1/models",
        "/v1/models/{model}",
        "/admin/adapters",
        "/admin/adapters/{tenant}/{name}",
        "/admin/adapters/{tenant}/{name}/versions/{number}",
        "/admin/adapters/{tenant}/{name}/aliases/{alias}",
        "/admin/adapters/{tenant}/{name}/rollback",
        "/admin/adapters/{tenant}/{name}/versions/{number}/pin",
        "/admin/adapters/{tenant}/{name}/versions/{number}/prefetch",
        "/admin/adapters/{tenant}/{name}/sharing",
        "/admin/residency",
        "/admin/tenants",
        "/admin/tenants/{tenant}",
        "/admin/tenants/{tenant}/quota",
        "/admin/keys",
        "/admin/keys/{key_id}",
        "/admin/usage",
        "/admin/audit",
        "/admin/whoami",
        "/livez",
        "/readyz",
        "/metrics",
    }
    for path in ("/invocations", "/tokenize", "/v1/chat/completions/batch", "/ping"):
        assert server.admin("POST", path, json={}).status_code == 404


def test_the_engine_computes_on_the_processors_chosen_for_it(server: RunningServer) -> None:
    """Seen in its sibling, multiprocessing's tracker: vLLM writes its title over its own."""
    chosen = openmp_variables(read_machine())
    children = psutil.Process(server.process.pid).children(recursive=True)
    found = [{name: child.environ().get(name) for name in chosen} for child in children]
    assert chosen in found


def test_metrics_hold_vllms_and_ours(server: RunningServer) -> None:
    text = server.admin("GET", "/metrics").text
    assert "vllm:num_requests_running" in text
    assert "loraplex_requests_total" in text
    assert 'loraplex_adapter_load_seconds_count{from_tier="disk",outcome="ok"}' in text


def test_an_unstreamed_answer_has_a_time_to_its_first_token(server: RunningServer) -> None:
    def seconds(name: str) -> float:
        text = server.admin("GET", "/metrics").text
        start = f'loraplex_{name}_seconds_sum{{adapter="default/smart-home"'
        return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith(start))

    names = ("time_to_first_token", "inter_token", "request")
    before = {name: seconds(name) for name in names}
    ask(server, "smart-home", LIGHTS)
    first_token, inter_token, request = (seconds(name) - before[name] for name in names)
    assert 0 < first_token < request - inter_token
    assert inter_token > 0
