"""Each family of bases in the real server, against Transformers and PEFT on the same weights.

`make bases` runs all of them, and prints how near they come. Without `BASES=all` there are those
that differ most in kind; Llama has tests of its own. In float32: `test_bases_in_float32.py`.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.real_engine.families import ARGUMENTS, FORMATS, Format
from tests.real_engine.reference import NOISE, distance, load, make_adapter
from tests.real_engine.running_server import RunningServer
from tests.tiny_families import BYTES, write_tiny_base

ALL = os.environ.get("BASES") == "all"
OFTEN = ["Qwen3ForCausalLM", "Gemma3ForCausalLM"]
OWN_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
LENGTHS = (5, 60)
"""Of the prompts, in tokens: within a sliding window, and beyond it."""
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.mark.parametrize("architecture", FORMATS if ALL else OFTEN)
def test_a_base_and_its_adapters_answer_as_in_transformers(
    architecture: str, tmp_path: Path
) -> None:
    form = FORMATS[architecture]
    base = write_tiny_base(tmp_path / "tiny", architecture, form.special_tokens, form.template)
    everywhere = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}
    partly = {"r": 4, "lora_alpha": 3, "target_modules": form.targets}
    adapters = {
        "all": make_adapter(base, tmp_path / "all", 1, **everywhere),
        "some": make_adapter(base, tmp_path / "some", 2, **partly),
    }
    flags = ["--base", str(base), "--max-lora-rank", "8", "--kv-cache-gib", "0.05"]
    server = RunningServer(tmp_path / "var", *flags)
    try:
        server.wait_until_ready()
        for name, adapter in adapters.items():
            register(server, name, adapter)
        check_distances(server, base, adapters, architecture)
        check_chat(server, base)
        check_tool_call(server, base, form)
        check_reasoning(server, architecture)
        register(server, "own", adapters["all"], **{"chat_template.jinja": OWN_TEMPLATE})
        message = chat(server, model="own", max_tokens=4)["choices"][0]["message"]
        assert message["content"] is not None, "an own template that shows no reasoning"
    finally:
        server.stop()


def register(server: RunningServer, name: str, adapter: Path, **more: str) -> None:
    files = [("files", (f.name, f.read_bytes())) for f in adapter.glob("adapter_[cm]*.*")]
    files += [("files", (file, text.encode())) for file, text in more.items()]
    answer = server.admin("POST", "/admin/adapters?wait=true", data={"name": name}, files=files)
    assert answer.status_code == 201, answer.text


def check_distances(
    server: RunningServer, base: Path, adapters: dict[str, Path], architecture: str
) -> None:
    models = {"base": load(base)} | {name: load(base, path) for name, path in adapters.items()}
    own: list[float] = []
    others: list[float] = []
    for length in LENGTHS:
        prompt = random.Random(length).choices(range(BYTES), k=length)
        for name in models:
            answer = prompt, *complete(server, name, prompt)
            for other, model in models.items():
                (own if other == name else others).append(distance(model, *answer))
    print(f"\n{architecture}: {max(own):.2g} from its own, {min(others):.2g} from others")
    assert max(own) < NOISE
    assert min(others) > 2 * NOISE


def complete(server: RunningServer, model: str, prompt: list[int]) -> tuple[list[int], list[float]]:
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24, "logprobs": 0}
    body |= {"return_token_ids": True, "ignore_eos": True}
    answer = server.admin("POST", "/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def chat(server: RunningServer, **options: Any) -> Any:
    body = {"model": "base", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    answer = server.admin("POST", "/v1/chat/completions", json={**body, **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def check_chat(server: RunningServer, base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert chat(server, max_tokens=1, return_token_ids=True)["prompt_token_ids"] == expected


def check_tool_call(server: RunningServer, base: Path, form: Format) -> None:
    """A random model writes the family's call if it is made to; then the server must read it.

    Where it may, it would write white space for ever.
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    answer = chat(
        server,
        tools=[TOOL],
        structured_outputs={"regex": re.escape(form.tool_call).replace(r"\ ", " ")},
        chat_template_kwargs={"enable_thinking": False},
        logit_bias={tokenizer.convert_tokens_to_ids(space): -100 for space in "ĠĊĉč"},
        stop=[form.end_of_call],  # vLLM's grammar may let more text follow
        include_stop_str_in_output=True,
        max_tokens=120,
    )
    (call,) = answer["choices"][0]["message"].get("tool_calls") or [None]
    assert call is not None, answer["choices"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == json.loads(ARGUMENTS)


def check_reasoning(server: RunningServer, architecture: str) -> None:
    """Only Qwen 3's answers begin with reasoning, unless the request says that they don't."""
    message = chat(server, max_tokens=4)["choices"][0]["message"]
    is_reasoning = message["content"] is None and bool(message.get("reasoning"))
    assert is_reasoning == (architecture == "Qwen3ForCausalLM"), message
    kwargs = {"enable_thinking": False}
    message = chat(server, max_tokens=4, chat_template_kwargs=kwargs)["choices"][0]["message"]
    assert message["content"] is not None
