"""Requests as clients of other servers send them, through OpenAI's and Anthropic's own clients."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest

from tests.real_engine.questions import LIGHTS, LIGHTS_ANSWER, ask, say
from tests.real_engine.running_server import RunningServer


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        ("base:smart-home", {}),
        ("base", {"adapter_id": "smart-home", "adapter_source": "local"}),
        ("base", {"lora_path": "default/smart-home"}),
    ],
)
def test_an_adapter_by_the_words_of_ray_sglang_and_lorax(
    server: RunningServer, model: str, extra: dict[str, str]
) -> None:
    answer = ask(server, model, LIGHTS, extra_body=extra)
    assert answer.model == "default/smart-home@1"
    assert json.loads(answer.choices[0].message.content) == LIGHTS_ANSWER


def post(server: RunningServer, path: str, **body: Any) -> Any:
    response = server.admin("POST", path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_tokens_of_a_prompt_and_back(server: RunningServer) -> None:
    tokens = post(server, "/tokenize", prompt=LIGHTS, return_token_strs=True)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"]) > 3
    assert tokens["max_model_len"] > 0
    text = post(server, "/detokenize", tokens=tokens["tokens"])
    assert text == {"prompt": LIGHTS}


def test_tokens_of_messages_are_those_that_are_computed(server: RunningServer) -> None:
    for model in ("base", "smart-home"):
        counted = post(server, "/tokenize", model=model, messages=say(LIGHTS))
        answer = ask(server, model, LIGHTS, max_tokens=1)
        assert counted["count"] == answer.usage.prompt_tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"model": "nobodys", "prompt": "x"}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": 3}),
        ("/tokenize", {"prompt": "x" * (1 << 21)}),
        ("/tokenize", {"messages": say("x"), "chat_template": "{{ 7 * 7 }}"}),
        ("/detokenize", {"tokens": "x"}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [1 << 62]}),
        ("/detokenize", {"tokens": [1] * ((1 << 18) + 1)}),
        ("/detokenize", {"model": "nobodys", "tokens": [1]}),
    ],
)
def test_what_cannot_be_tokenized(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    response = server.admin("POST", path, json=body)
    assert response.status_code in (400, 404), response.text
    assert set(response.json()["error"]) >= {"message", "type", "param", "code"}
    assert server.status("/readyz") == 200


def test_the_service_tier_is_where_the_clients_read_it(server: RunningServer) -> None:
    assert ask(server, "base", LIGHTS, max_tokens=2).service_tier is None
    quota = "/admin/tenants/default/quota"
    server.admin("PUT", quota, json={"service_tiers": ["flex"]})
    try:
        for asked, used in (("flex", "flex"), ("priority", "default"), ("auto", "default")):
            options: dict[str, Any] = {"max_tokens": 2, "service_tier": asked}
            assert ask(server, "base", LIGHTS, **options).service_tier == used
            chunks = list(ask(server, "base", LIGHTS, stream=True, **options))
            assert {chunk.service_tier for chunk in chunks} == {used}
            create: Any = server.client().responses.create
            answer = create(model="base", input=LIGHTS, max_output_tokens=2, service_tier=asked)
            assert answer.service_tier == used
        assert (
            server.client()
            .responses.create(model="base", input=LIGHTS, max_output_tokens=2)
            .service_tier
            == "default"
        )
        client = anthropic.Anthropic(base_url=server.url, api_key=server.key, max_retries=0)
        message = client.messages.create(
            model="base",
            max_tokens=2,
            messages=[{"role": "user", "content": LIGHTS}],
            service_tier="auto",
        )
        assert message.usage.service_tier == "standard"
        with client.messages.stream(
            model="base",
            max_tokens=2,
            messages=[{"role": "user", "content": LIGHTS}],
            service_tier="standard_only",
        ) as stream:
            assert stream.get_final_message().usage.service_tier == "standard"
    finally:
        server.admin("PUT", quota, json={})
