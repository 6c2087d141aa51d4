"""How each family of bases writes turns and tool calls, as far as the tests of bases need it."""

from __future__ import annotations

from dataclasses import dataclass, field

ARGUMENTS = '{"city": "Rome"}'
_HERMES = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


@dataclass(frozen=True)
class Format:
    """The end of a turn first, then further special tokens; the template; a call of a tool."""

    special_tokens: list[str]
    template: str
    tool_call: str = _HERMES
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj", "up_proj"])
    """Of the second adapter. The first has all linear layers."""

    @property
    def end_of_call(self) -> str:
        """The text that ends a call of a tool."""
        tag = "</tool_call>"
        return tag if self.tool_call.endswith(tag) else self.tool_call[-3:]


def _turns(before: str, after: str, end: str = "") -> str:
    """A template with `before` and `after` around the role, and `end` behind the content."""
    return (
        f"{{% for m in messages %}}{before}{{{{ m.role }}}}{after}{{{{ m.content }}}}{end}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{before}assistant{after}{{% endif %}}"
    )


FORMATS = {
    "LlamaForCausalLM": Format(
        ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>"],
        _turns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
        f'{{"name": "get_weather", "parameters": {ARGUMENTS}}}',
    ),
    "MistralForCausalLM": Format(
        ["</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"],
        "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}",
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {ARGUMENTS}}}]',
    ),
    "Qwen2ForCausalLM": Format(["<|im_end|>", "<|im_start|>"], _turns("<|im_start|>", "\n")),
    "Qwen3ForCausalLM": Format(["<|im_end|>", "<|im_start|>", "<think>", "</think>"], _CHATML),
    "Gemma3ForCausalLM": Format(
        ["<end_of_turn>", "<start_of_turn>"],
        _turns("<start_of_turn>", "\n", "<end_of_turn>\n"),
        '[get_weather(city="Rome")]',
    ),
    "Phi3ForCausalLM": Format(
        ["<|end|>", "<|user|>", "<|assistant|>", "<|tool_call|>"],
        _turns("<|", "|>", "<|end|>"),
        f'functools[{{"name": "get_weather", "arguments": {ARGUMENTS}}}]',
        targets=["qkv_proj", "gate_up_proj"],
    ),
    "GraniteForCausalLM": Format(
        ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"],
        _turns("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>\n"),
        f'<tool_call>[{{"name": "get_weather", "arguments": {ARGUMENTS}}}]',
    ),
    "Olmo2ForCausalLM": Format(["<|endoftext|>"], _turns("<|", "|>\n", "\n")),
    "SmolLM3ForCausalLM": Format(["<|im_end|>", "<|im_start|>", "<think>", "</think>"], _CHATML),
}
