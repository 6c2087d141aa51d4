"""Finds special tokens in the text of training data, usually the result of a wrong export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.data.conversations import Conversation


@dataclass(frozen=True)
class Found:
    """The number of examples whose text has special tokens, by role, and these tokens."""

    num_examples: int
    by_role: Counter[str]
    tokens: Counter[str]

    def __str__(self) -> str:
        roles = ", ".join(f"{role} {count:,}" for role, count in self.by_role.most_common())
        tokens = ", ".join(token for token, _ in self.tokens.most_common(3))
        return (
            f"{self.num_examples:,} example(s) hold special tokens in their text ({roles}), such "
            f"as {tokens}: usually the export was wrong"
        )


def special_tokens(tokenizer: Any) -> set[str]:
    """Return the texts that the tokenizer turns into special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = {str(token) for token in getattr(tokenizer, "all_special_tokens", [])}
    return {text for text in texts | {t.content for t in added if t.special} if text}


def special_tokens_in(tokenizer: Any, conversations: Sequence[Conversation]) -> Found:
    """Look for special tokens in the texts of messages."""
    known = special_tokens(tokenizer)
    found = Found(0, Counter(), Counter())
    num_examples = 0
    for conversation in conversations:
        roles: set[str] = set()
        for message in conversation.messages:
            held = {token for token in known if token in message["content"]}
            found.tokens.update(held)
            roles |= {message["role"]} if held else set()
        found.by_role.update(roles)
        num_examples += bool(roles)
    return Found(num_examples, found.by_role, found.tokens)
