"""Chooses the held-out examples: whole groups with one prompt, so none is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from training.data.conversations import Conversation
from training.errors import DataError


def prompt_of(conversation: Conversation) -> str:
    """Return a conversation's text before its first answer, with blanks and case normalised.

    Conversations with the same prompt form a group. So if several rounds of one conversation are
    separate records, they stay together.
    """
    parts = []
    for message in conversation.messages:
        if message["role"] == "assistant":
            break
        parts.append(f"{message['role']}: {' '.join(message['content'].split()).casefold()}")
    return "\n".join(parts)


def num_duplicates(conversations: Sequence[Conversation]) -> int:
    """Return how many conversations repeat an earlier one word for word."""
    return len(conversations) - len({json.dumps(c.record, sort_keys=True) for c in conversations})


def held_out(conversations: Sequence[Conversation], share: float, seed: int) -> set[int]:
    """Return the indices of the examples to hold out: about this share, at least one if not 0.

    A hash of prompt and seed decides which prompts are held out, so that with more data earlier
    examples mostly stay on their side. A group that is larger than the number still needed is
    skipped. If all groups are, the smallest one is held out.

    Raises:
        DataError: there are too few examples or too few different prompts.
    """
    if not share:
        return set()
    wanted = max(1, round(len(conversations) * share))
    groups: dict[str, list[int]] = defaultdict(list)
    for index, conversation in enumerate(conversations):
        groups[prompt_of(conversation)].append(index)
    if wanted >= len(conversations) or len(groups) < 2:
        raise DataError(
            f"{len(conversations)} example(s) with {len(groups)} different prompt(s) are too few "
            f"to keep {share:.0%} for validation: give more, or --validation-share 0"
        )
    ordered = sorted(groups, key=lambda prompt: _hash(prompt, seed))
    chosen: set[int] = set()
    for prompt in ordered:
        if len(groups[prompt]) <= wanted - len(chosen):
            chosen.update(groups[prompt])
    if chosen:
        return chosen
    smallest = min(ordered, key=lambda prompt: len(groups[prompt]))
    return set(groups[smallest])


def split_off(
    conversations: Sequence[Conversation], share: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """Return the conversations to train on, and those that `held_out` chooses, both in order.

    Raises:
        DataError: as in `held_out`.
    """
    chosen = held_out(conversations, share, seed)
    rest = [c for index, c in enumerate(conversations) if index not in chosen]
    return rest, [conversations[index] for index in sorted(chosen)]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
