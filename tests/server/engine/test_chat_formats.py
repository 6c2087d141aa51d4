"""The parsers of tool calls and reasoning, chosen by a base's files."""

import json
from pathlib import Path

import pytest

from server.engine.arguments import engine_arguments
from server.engine.chat_formats import chat_formats
from server.settings import Settings
from tests.server.engine.device.devices import CPU


def write_base(directory: Path, architecture: str, tokens: str = "", template: str = "") -> str:
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "tokenizer.json").write_text(tokens)
    (directory / "chat_template.jinja").write_text(template)
    return str(directory)


@pytest.mark.parametrize(
    ("architecture", "token", "parser"),
    [
        ("LlamaForCausalLM", "", "hermes"),
        ("LlamaForCausalLM", "<|python_tag|>", "llama3_json"),
        ("MistralForCausalLM", "", "hermes"),
        ("MistralForCausalLM", "[TOOL_CALLS]", "mistral"),
        ("Qwen2ForCausalLM", "<tool_call>", "hermes"),
        ("Qwen3ForCausalLM", "<tool_call>", "hermes"),
        ("Gemma3ForCausalLM", "", "pythonic"),
        ("Gemma3ForCausalLM", "<start_function_call>", "functiongemma"),
        ("Phi3ForCausalLM", "", "hermes"),
        ("Phi3ForCausalLM", "<|tool_call|>", "phi4_mini_json"),
        ("GraniteForCausalLM", "", "granite"),
        ("GraniteForCausalLM", "<tool_call></tool_call>", "granite4"),
        ("GraniteForCausalLM", "<|tool_call|>", "granite"),
        ("Olmo2ForCausalLM", "", "hermes"),
        ("SmolLM3ForCausalLM", "", "hermes"),
    ],
)
def test_tool_call_format_follows_family_and_tokenizer(
    tmp_path: Path, architecture: str, token: str, parser: str
) -> None:
    assert chat_formats(write_base(tmp_path, architecture, token)).tool_parser == parser


@pytest.mark.parametrize(
    ("architecture", "template", "tokens", "parser"),
    [
        ("Qwen3ForCausalLM", "<think></think>", "</think>", "qwen3"),
        ("Qwen3ForCausalLM", "an instruct model's that never thinks", "</think>", None),
        ("Qwen3ForCausalLM", "<think></think>", "", None),
        ("LlamaForCausalLM", "", "", None),
        ("LlamaForCausalLM", "{{ content.split('</think>')[-1] }}", "</think>", "deepseek_r1"),
        ("GraniteForCausalLM", "Here is my thought process:", "", "granite"),
        ("SmolLM3ForCausalLM", "<think></think>", "</think>", None),
    ],
)
def test_reasoning_is_read_where_the_template_shows_it(
    tmp_path: Path, architecture: str, template: str, tokens: str, parser: str | None
) -> None:
    base = write_base(tmp_path, architecture, tokens, template)
    assert chat_formats(base).reasoning_parser == parser


def test_a_base_that_cannot_be_read_is_taken_for_a_llama(tmp_path: Path) -> None:
    for base in (str(tmp_path), "org/not-downloaded", "no hub id/at/all"):
        formats = chat_formats(base)
        assert (formats.family.architecture, formats.tool_parser) == ("LlamaForCausalLM", "hermes")


def test_formats_become_arguments_of_the_engine(tmp_path: Path) -> None:
    base = write_base(tmp_path, "Qwen3ForCausalLM", "</think>", "</think>")
    arguments = engine_arguments(Settings(), base, CPU)
    assert (arguments.tool_call_parser, arguments.reasoning_parser) == ("hermes", "qwen3")
    assert "q_proj" in arguments.lora_target_modules
    chosen = Settings(engine_args=("--reasoning-parser", "", "--tool-call-parser", "qwen3_xml"))
    arguments = engine_arguments(chosen, base, CPU)
    assert (arguments.tool_call_parser, arguments.reasoning_parser) == ("qwen3_xml", "")


def test_a_fused_familys_layers_are_the_engines_targets(tmp_path: Path) -> None:
    arguments = engine_arguments(Settings(), write_base(tmp_path, "Phi3ForCausalLM"), CPU)
    expected = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert arguments.lora_target_modules == expected


def test_mistrals_own_formats_are_left_alone(tmp_path: Path) -> None:
    arguments = engine_arguments(Settings(), write_base(tmp_path, "MistralForCausalLM"), CPU)
    formats = arguments.tokenizer_mode, arguments.config_format, arguments.load_format
    assert formats == ("hf", "hf", "hf")
