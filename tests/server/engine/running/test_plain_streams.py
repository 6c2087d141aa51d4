"""What vLLM's parsers make of a streamed answer, and what is streamed without them."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager

from server.engine.running.plain_streams import stream_plainly

STEPS = ["", '{"name"', ": 1", "", "}", " and <tool_call> more", ""]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


class Tokenizer:
    def get_vocab(self) -> dict[str, int]:
        names = ("<tool_call>", "</tool_call>", "<|python_tag|>", "<think>", "</think>")
        return {name: number for number, name in enumerate(names)}

    def encode(self, *_args: Any, **_options: Any) -> list[int]:
        return [3]


def handler(tools: str, reasoning: str = "") -> Any:
    parser_cls = ParserManager.get_parser(
        tool_parser_name=tools or None,
        reasoning_parser_name=reasoning,
        enable_auto_tools=bool(tools),
        model_name="base",
    )

    def make(request: Any, tokenizer: Any, options: Any) -> Any:
        return parser_cls(tokenizer, request.tools, chat_template_kwargs=options)

    return SimpleNamespace(parser_cls=parser_cls, _make_parser=make)


def patched(handler: Any) -> Any:
    stream_plainly(SimpleNamespace(openai_serving_chat=handler))  # type: ignore[arg-type]
    return handler


def request(**options: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest(messages=[{"role": "user", "content": "x"}], **options)


def streamed(handler: Any, asked: ChatCompletionRequest) -> list[Any]:
    parser = handler._make_parser(asked, Tokenizer(), {})
    last = len(STEPS) - 1
    return [
        parser.parse_delta(
            delta_text=text,
            delta_token_ids=[10 + number],
            request=asked,
            prompt_token_ids=[5],
            finished=number == last,
        )
        for number, text in enumerate(STEPS)
    ]


def is_plain(handler: Any, asked: ChatCompletionRequest) -> bool:
    return "parse_delta" in vars(handler._make_parser(asked, Tokenizer(), {}))


@pytest.mark.parametrize("tools", ["llama3_json", "hermes"])
@pytest.mark.parametrize("options", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_an_answer_that_may_call_no_tool_is_as_vllm_streams_it(
    tools: str, options: dict[str, Any]
) -> None:
    asked, plain = request(**options), patched(handler(tools))
    assert is_plain(plain, asked)
    assert streamed(plain, asked) == streamed(handler(tools), asked)
    assert "".join(delta.content for delta in streamed(plain, asked) if delta) == "".join(STEPS)


@pytest.mark.parametrize(
    ("tools", "reasoning", "options"),
    [
        ("llama3_json", "", {"tools": TOOLS}),
        ("llama3_json", "deepseek_r1", {}),
        ("qwen3_xml", "", {}),  # it takes calls out of the text even if none may be made
    ],
)
def test_an_answer_in_which_something_may_be_found_is_parsed(
    tools: str, reasoning: str, options: dict[str, Any]
) -> None:
    assert not is_plain(patched(handler(tools, reasoning)), request(**options))


def test_a_base_without_parsers_is_left_alone() -> None:
    without = SimpleNamespace(parser_cls=None, _make_parser="vLLM's")
    assert patched(without)._make_parser == "vLLM's"
