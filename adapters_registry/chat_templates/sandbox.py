"""The environment of an adapter's chat template: Jinja's sandbox, set up as in Transformers.

It bounds neither time nor memory. `process.py` does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT_CHARACTERS = 8 << 20
PROBE = "Loraplex asks"


class TemplateFailed(Exception):
    """A template that can't be used: it doesn't compile, raises, or writes too much."""


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; the text stays."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return what a template writes. Raises `TemplateFailed`."""
    try:
        parts, length = [], 0
        for part in _compile(source).generate(variables):
            length += len(part)
            if length > MAX_OUTPUT_CHARACTERS:
                raise TemplateFailed(f"it writes over {MAX_OUTPUT_CHARACTERS:,} characters")
            parts.append(part)
        return "".join(parts)
    except TemplateFailed:
        raise
    except MemoryError:
        raise TemplateFailed("it takes too much memory") from None
    except RecursionError:
        raise TemplateFailed("it is nested too deeply") from None
    except Exception as error:
        raise TemplateFailed(_reason(error)) from error


def content_format(source: str) -> str:
    """Return the form in which a template takes content: `string`, `openai` (parts) or nothing.

    The template is tried with each form: the right one is that in which the text is rendered.

    Raises:
        TemplateFailed: it doesn't compile, or fails on the simplest conversation in both forms.
    """
    failure = None
    forms = {"string": PROBE, "openai": [{"type": "text", "text": PROBE}]}
    for name, content in forms.items():
        messages = [{"role": "user", "content": content}]
        variables = {"messages": messages, "add_generation_prompt": True}
        variables |= {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": ""}
        try:
            if PROBE in (written := render(source, variables)) and "'type':" not in written:
                return name
        except TemplateFailed as error:
            failure = failure or error
    if failure:
        raise failure
    return ""


def continue_message(written: str, content: str) -> str:
    """Cut a rendered conversation after its last message, which the answer is to continue.

    Raises:
        TemplateFailed: the template changes that message, so that its end can't be found.
    """
    at = written.rfind(content.strip())
    if at < 0:
        raise TemplateFailed("continue_final_message: it doesn't show the last message as it is")
    whole = content.lstrip()
    return written[:at] + (whole if written.startswith(whole, at) else content.strip())


def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as Transformers writes it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _reason(error: Exception) -> str:
    line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return f"{str(error)[:300] or type(error).__name__}{line}"


def special_tokens(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the special tokens that a tokenizer's configuration names, such as `eos_token`."""
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = values.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text:
            yield name, text
