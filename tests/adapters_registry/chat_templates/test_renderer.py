"""Chat templates run in a process of their own: right, and bounded in time, memory and output."""

from collections.abc import Iterator
from typing import Any

import pytest

from adapters_registry.chat_templates.renderer import TemplateRenderer
from adapters_registry.chat_templates.sandbox import TemplateFailed

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes "}],
    "add_generation_prompt": False,
    "eos_token": "</s>",
}
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    with TemplateRenderer() as renderer:
        yield renderer


def test_a_conversation_is_rendered(renderer: TemplateRenderer) -> None:
    assert renderer.render(PLAIN, CHAT) == "[user] Hi</s>[assistant] Yes </s>"


def test_the_last_message_is_continued(renderer: TemplateRenderer) -> None:
    assert renderer.render(PLAIN, CHAT, "Yes ") == "[user] Hi</s>[assistant] Yes "


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ {'a': '<ü>'} | tojson }}", '{"a": "<ü>"}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hi"),
        ("{% for m in messages %}{{ m.content }}{% break %}{% endfor %}", "Hi"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("  {% if tools is not defined %}\nnone\n  {% endif %}\n", "none\n"),
    ],
)
def test_what_templates_of_transformers_use(
    renderer: TemplateRenderer, template: str, expected: str
) -> None:
    assert renderer.render(template, CHAT) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "endfor"),
        ("{{ raise_exception('roles must alternate') }}", "^roles must alternate$"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not callable"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "over"),
        ("{{ 'a' * 10**11 }}", "memory"),
        ("{% set x = 10 ** (10 ** 10) %}", "over"),
        ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "8,388,608 characters"),
        ("{% if a %}" * 5000 + "{% endif %}" * 5000, "nested|characters"),
        ("x" * (65 << 10), "65,536 characters"),
    ],
)
def test_what_a_template_may_not_do(renderer: TemplateRenderer, template: str, reason: str) -> None:
    with pytest.raises(TemplateFailed, match=reason):
        renderer.render(template, CHAT)
    assert renderer.render(PLAIN, CHAT), "the next request is answered"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (PLAIN, "string"),
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("constant", ""),
    ],
)
def test_how_content_is_taken(renderer: TemplateRenderer, template: str, expected: str) -> None:
    assert renderer.content_format(template) == expected


def test_a_process_that_was_killed_is_replaced(renderer: TemplateRenderer) -> None:
    renderer.render(PLAIN, CHAT)
    assert renderer._process
    renderer._process.kill()
    renderer._process.wait()
    assert renderer.render(PLAIN, CHAT)
