"""What OpenAI's client is told of requests that can't be answered, on the real engine."""

import httpx
import openai
import pytest

from tests.real_engine.questions import LIGHTS, ask, say
from tests.real_engine.running_server import RunningServer


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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "code"),
    [
        (
            {"structured_outputs": {"regex": "[a-z0-9 ]{1,2048}[A-Z]{1,2048}.{1,2000}"}},
            "schema_too_complex",
        ),
        ({"structured_outputs": {"regex": "("}}, "invalid_request"),
        ({"logit_bias": {"99999999": 1}}, "invalid_request"),
    ],
)
def test_what_the_engine_refuses_is_refused_before_a_stream_begins(
    server: RunningServer, options: dict[str, object], code: str, *, stream: bool
) -> None:
    body = {"model": "base", "messages": say("hi"), "max_tokens": 1, "stream": stream, **options}
    response = server.admin("POST", "/v1/chat/completions", json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == code


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
