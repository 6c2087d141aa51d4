"""Renders conversations as text with the base's chat template, always with the same date."""

from __future__ import annotations

import datetime
from typing import Any

from training.data.conversations import Conversation, Message
from training.errors import DataError

DEFAULT_DATE = "2024-07-26"
"""The date given to templates that ask for today's. Llama's own template falls back to it too."""


class Renderer:
    """A tokenizer's chat template, with a date that doesn't change from run to run."""

    def __init__(self, tokenizer: Any, date: str = DEFAULT_DATE) -> None:
        self.tokenizer = tokenizer
        self._date = datetime.datetime.fromisoformat(date)

    def render(
        self, conversation: Conversation, length: int | None = None, *, opens_answer: bool = False
    ) -> str:
        """Return the text of the first `length` messages, or of all.

        With `opens_answer` the text ends where the model would begin its next answer.

        Raises:
            DataError: the template refuses the conversation. The text has the template's reason.
        """
        from jinja2.exceptions import TemplateError

        messages = [_without_weight(message) for message in conversation.messages[:length]]
        options: dict[str, Any] = {"tools": conversation.tools} if conversation.tools else {}
        if opens_answer:
            options["add_generation_prompt"] = True
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, strftime_now=self._date.strftime, **options
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(f"the chat template can't render the conversation: {error}") from error
        return str(text)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the text's token ids, and the range of characters of each."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), list(encoded["offset_mapping"])


def _without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}
