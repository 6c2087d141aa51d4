"""A version answers by the chat template, stop token and sampling defaults that came with it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from adapters_registry.content.adapter_files import ADAPTER_FILES
from tests.real_engine.running_server import RunningServer

DEMO = Path(__file__).parents[2] / "training/demo/smart-home"
BEFORE, AFTER = "<|im_start|>user\nPlease: ", "<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = "{% for m in messages %}" + BEFORE + "{{ m.content }}" + AFTER + "{% endfor %}"
SAYS = "Turn on the lights in the kitchen."
PROMPT = BEFORE + SAYS + AFTER
MESSAGES = [{"role": "user", "content": SAYS}]


def register(server: RunningServer, name: str, directory: Path, **files: str) -> Any:
    directory.mkdir()
    for file in ADAPTER_FILES:
        shutil.copy(DEMO / file, directory)
    for file, text in files.items():
        (directory / file).write_text(text)
    parts = [("files", (file.name, file.read_bytes())) for file in sorted(directory.iterdir())]
    answer = server.admin("POST", "/admin/adapters?wait=true", data={"name": name}, files=parts)
    assert answer.status_code == 201, answer.text
    return answer.json()


def ask(server: RunningServer, route: str, model: str, **body: Any) -> Any:
    answer = server.admin("POST", f"/v1/{route}", json={"model": model, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def twin(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An adapter of the same weights with the same template, and nothing else of its own."""
    directory = tmp_path_factory.mktemp("twin") / "files"
    version = register(server, "twin", directory, **{"chat_template.jinja": TEMPLATE})
    assert version["metadata"]["checked"]["serving"]["content_format"] == "string"
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    answer: dict[str, Any] = ask(server, "completions", "twin", **body)["choices"][0]
    return answer


def test_its_template_is_used_beside_others(server: RunningServer, twin: dict[str, Any]) -> None:
    greedy = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    models = ["base", "smart-home", "twin"] * 4
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(
            pool.map(lambda model: ask(server, "chat/completions", model, **greedy), models)
        )
    plain = ask(server, "completions", "twin", prompt=PROMPT, max_tokens=1)["usage"][
        "prompt_tokens"
    ]
    for model, answer in zip(models, answers, strict=True):
        prompt_tokens = answer["usage"]["prompt_tokens"]
        assert (prompt_tokens == plain) == (model == "twin"), model
        if model == "twin":
            assert answer["choices"][0]["message"]["content"] == twin["text"]
    message = ask(server, "messages", "twin", messages=MESSAGES, max_tokens=1)
    response = ask(server, "responses", "twin", input=SAYS, max_output_tokens=1)
    counted = ask(server, "messages/count_tokens", "twin", messages=MESSAGES)
    assert message["usage"]["input_tokens"] == plain
    assert response["usage"]["input_tokens"] == plain
    assert counted["input_tokens"] == plain


def test_its_stop_token_and_sampling_defaults_hold(
    server: RunningServer, twin: dict[str, Any], tmp_path: Path
) -> None:
    stop = twin["token_ids"][len(twin["token_ids"]) // 2]
    at = twin["token_ids"].index(stop)
    generation = json.dumps({"eos_token_id": [2, stop], "top_k": 1, "max_new_tokens": 40})
    files = {"chat_template.jinja": TEMPLATE, "generation_config.json": generation}
    version = register(server, "own", tmp_path / "own", **files)
    assert version["metadata"]["checked"]["serving"]["stop_token_ids"] == [stop]
    asked = {"messages": MESSAGES, "temperature": 1}
    with ThreadPoolExecutor(4) as pool:
        own = pool.submit(ask, server, "chat/completions", "own", **asked)
        other = pool.submit(
            ask, server, "chat/completions", "twin", messages=MESSAGES, temperature=0, max_tokens=12
        )
        message = pool.submit(
            ask, server, "messages", "own", messages=MESSAGES, max_tokens=30, temperature=1
        )
        response = pool.submit(ask, server, "responses", "own", input=SAYS, temperature=1)
    assert own.result()["choices"][0]["finish_reason"] == "stop"
    assert own.result()["usage"]["completion_tokens"] == at + 1
    assert twin["text"].startswith(own.result()["choices"][0]["message"]["content"])
    assert other.result()["choices"][0]["message"]["content"] == twin["text"]
    assert message.result()["usage"]["output_tokens"] == at + 1
    assert response.result()["usage"]["output_tokens"] == at + 1


def test_its_longest_answer_holds_unless_a_request_says_otherwise(
    server: RunningServer, tmp_path: Path
) -> None:
    register(
        server, "short", tmp_path / "short", **{"generation_config.json": '{"max_new_tokens": 3}'}
    )
    asked = {"messages": MESSAGES, "temperature": 0}
    short = ask(server, "chat/completions", "short", **asked)
    longer = ask(server, "chat/completions", "short", max_tokens=5, **asked)
    assert short["usage"]["completion_tokens"] == 3
    assert longer["usage"]["completion_tokens"] == 5


def test_a_template_that_never_ends_stops_only_its_own_request(
    server: RunningServer, tmp_path: Path
) -> None:
    """It behaves at registration, and loops for ever on a conversation of two messages."""
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = TEMPLATE + "{% if messages | length > 1 %}" + loop + "{% endif %}"
    register(server, "loops", tmp_path / "loops", **{"chat_template.jinja": template})
    body = {"messages": [*MESSAGES, *MESSAGES], "max_tokens": 2}
    with ThreadPoolExecutor(3) as pool:
        looping = pool.submit(
            server.admin, "POST", "/v1/chat/completions", json={"model": "loops", **body}
        )
        assert ask(server, "chat/completions", "twin", **body)["choices"]
    assert looping.result().status_code == 400
    assert "takes over 1 s" in looping.result().json()["error"]["message"]
    assert ask(server, "chat/completions", "loops", messages=MESSAGES, max_tokens=2)["choices"]
