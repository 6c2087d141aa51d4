"""What a request asks of the engine: prompts, choices, tokens. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.errors import InvalidRequest

_CHARACTERS_PER_TOKEN = 4
"""The rough value for English text, by which a prompt reserves tokens before it is tokenised."""
_TEXTS_OF_A_PROMPT = ("system", "instructions", "messages", "input", "tools", "documents")
PROMPTS = ("messages", "input", "prompt")
"""The field of each API that holds what the answer follows."""
ANSWER_LENGTHS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""The fields that bound an answer. The first one that a request's type has is preferred."""


@dataclass(frozen=True)
class Demand:
    """The prompts, choices and tokens that one request asks for."""

    num_prompts: int
    choices_per_prompt: int
    prompt_tokens: int
    """An estimate for all prompts together."""
    longest_prompt_characters: int
    """0 if the request lets long prompts be cut."""
    answer_tokens: int | None
    """The longest answer of each choice, or None if the body does not bound it."""
    prompt_field: str | None = None
    """What the body's prompt is called."""

    @property
    def choices(self) -> int:
        """Answers, of all prompts together."""
        return self.num_prompts * self.choices_per_prompt


COUNTED_ONLY = Demand(1, 1, 0, 0, 0)
"""The demand of a request that runs no model: it counts as a request, and takes no tokens."""


def demand_of(request: Any, body: dict[str, Any]) -> Demand:
    """Measure a validated request and the decoded body that it was made from.

    Raises:
        InvalidRequest: a number of choices or tokens is below one, or is not supported.
    """
    choices = _number_of_choices(request, body)
    for name in ANSWER_LENGTHS:
        if (vars(request).get(name) or 0) < 0:
            raise InvalidRequest(f"{name} must not be negative", param=name)
    shared = sum(_characters(body.get(name)) for name in _TEXTS_OF_A_PROMPT)
    prompts = _prompts(body.get("prompt"))
    characters = [shared + (len(prompt) if isinstance(prompt, str) else 0) for prompt in prompts]
    num_ids = sum(len(prompt) for prompt in prompts if isinstance(prompt, list))
    return Demand(
        num_prompts=len(prompts),
        choices_per_prompt=choices,
        prompt_tokens=num_ids + math.ceil(sum(characters) / _CHARACTERS_PER_TOKEN),
        longest_prompt_characters=0 if _is_cut(request) else max(characters),
        answer_tokens=answer_tokens_of(request),
        prompt_field=next(filter(body.__contains__, PROMPTS), None),
    )


def answer_tokens_of(request: Any) -> int | None:
    """Return the longest answer of each choice, or None if the request does not bound it."""
    # `getattr` would warn, because vLLM marks one of the fields as deprecated.
    lengths = (vars(request).get(name) for name in ANSWER_LENGTHS)
    return next((int(length) for length in lengths if length is not None), None)


def limit_answer_to(request: Any, most: int, message: Callable[[str], str]) -> None:
    """Keep each answer of a request to at most `most` tokens.

    A request that doesn't say how long its answers may be gets `most`. `message` is called with the
    name of a field that says more.

    Raises:
        InvalidRequest: the request asks for more.
    """
    lengths = {name: vars(request)[name] for name in ANSWER_LENGTHS if name in vars(request)}
    given = [name for name, length in lengths.items() if length is not None]
    for name in given:
        if lengths[name] > most:
            if name not in getattr(request, "model_fields_set", given):
                setattr(request, name, most)  # it is only the API's default
                continue
            raise InvalidRequest(message(name), param=name)
    if lengths and not given:
        setattr(request, next(iter(lengths)), most)


def _number_of_choices(request: Any, body: dict[str, Any]) -> int:
    choices = getattr(request, "n", None)
    if choices is None:
        choices = 1
    if choices < 1:
        raise InvalidRequest("n must be at least 1", param="n")
    best_of = body.get("best_of")
    if isinstance(best_of, int) and best_of > choices:
        raise InvalidRequest(
            "best_of is not supported: ask for n choices and choose among them", param="best_of"
        )
    return int(choices)


def _is_cut(request: Any) -> bool:
    truncation = getattr(request, "truncation", None)
    tokens = getattr(request, "truncate_prompt_tokens", None)
    return truncation == "auto" or tokens is not None


def _prompts(prompt: Any) -> list[Any]:
    """Return the prompts of a completions request. Other APIs have one prompt, without its text."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt
    return [prompt]


def _characters(value: Any) -> int:
    """Count the characters of all strings in a JSON value that has been bounded."""
    num_characters, open_values = 0, [value]
    while open_values:
        part = open_values.pop()
        if isinstance(part, str):
            num_characters += len(part)
        elif isinstance(part, dict):
            open_values.extend(part.values())
        elif isinstance(part, list):
            open_values.extend(part)
    return num_characters
