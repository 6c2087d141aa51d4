"""A tokenizer of one token a character, whose template is a few lines of Jinja."""

from typing import Any

import jinja2

CHATML = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}$\n{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


class CharacterTokenizer:
    """One token a character, so that spans can be read off."""

    eos_token = "#"
    """Not what ends a turn: nothing may depend on it."""
    all_special_tokens = ("#", "$")

    def __init__(self, template: str = CHATML) -> None:
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        self.template = environment.from_string(template)

    def apply_chat_template(self, messages: Any, *, tokenize: bool, **options: Any) -> str:
        assert not tokenize
        return self.template.render(messages=messages, **options)

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        assert options == {"add_special_tokens": False, "return_offsets_mapping": True}
        return {
            "input_ids": [ord(character) for character in text],
            "offset_mapping": [(i, i + 1) for i in range(len(text))],
        }
