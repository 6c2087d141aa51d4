"""The bundled base's own template, with its real tokenizer."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from server.bundled_base import ensure_bundled_base
from training.data.conversations import Conversation, checked, exchange
from training.data.rendering import Renderer
from training.data.tokenization import tokenize_conversation
from training.models.base_model import load_tokenizer

TWO = Conversation([*exchange("A?", "B.").messages, *exchange("C?", "D.").messages])
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def learned(renderer: Renderer, conversation: Conversation) -> str:
    (sample,) = tokenize_conversation(renderer, conversation)
    return str(renderer.tokenizer.decode(sample.answer_ids))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(load_tokenizer(ensure_bundled_base()))


def test_a_base_whose_turns_do_not_end_with_its_eos_token(tmp_path: Path) -> None:
    """The user's words must not be learned (as with the first files of Llama 3 Instruct)."""
    base = ensure_bundled_base()
    for file in base.glob("*.json"):
        shutil.copy(file, tmp_path)
    for file in base.glob("*.jinja"):
        shutil.copy(file, tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / name
        facts: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(facts | {"eos_token": "<|endoftext|>"}))
    other = Renderer(load_tokenizer(tmp_path))
    assert other.tokenizer.eos_token == "<|endoftext|>"
    assert learned(other, TWO) == "B.<|im_end|>D.<|im_end|>"


def test_tool_calls_are_learned(renderer: Renderer) -> None:
    ask = {"role": "user", "content": "hi"}
    said = {"role": "assistant", "content": "One moment.", "tool_calls": [CALL]}
    text = learned(renderer, checked([ask, said], [TOOL]))
    assert text == ('One moment.<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>')
    silent = {**said, "content": None}
    told = {"role": "tool", "tool_call_id": "1", "content": "ok"}
    done = {"role": "assistant", "content": "done"}
    text = learned(renderer, checked([ask, silent, told, done]))
    assert text == '<tool_call>{"name": "f", "arguments": {}}</tool_call><|im_end|>done<|im_end|>'


def test_an_answer_that_holds_the_end_token_is_learned_whole(renderer: Renderer) -> None:
    assert learned(renderer, exchange("A?", "x <|im_end|> y")) == "x <|im_end|> y<|im_end|>"


def test_a_template_that_asks_for_today_gets_the_date_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Tomorrow":
            return cls(2031, 5, 6)

    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    # As Llama 3.2's template does.
    template = (
        "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
        "{%- endif %}{{ date_string }}|{{ messages[0]['content'] }}"
    )
    tokenizer = load_tokenizer(ensure_bundled_base(), template)
    rendered = tokenizer.apply_chat_template(exchange("a", "b").messages, tokenize=False)
    assert rendered == "06 May 2031|a"
    assert Renderer(tokenizer).render(exchange("a", "b")) == "26 Jul 2024|a"
