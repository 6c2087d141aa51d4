"""Which examples are held out: whole groups with the same prompt, so that none is on both sides."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence

from training.data.conversations import Conversation
from training.errors import DataError


def prompt_of(conversation: Conversation) -> str:
    """Return what identifies a conversation: all up to its first answer, blanks and case aside.

    So several rounds of one conversation, each a record of its own, belong together.
    """
    parts = []
    for message in conversation.messages:
        if message["role"] == "assistant":
            break
        parts.append(f"{message['role']}: {' '.join(message['content'].split()).casefold()}")
    return "\n".join(parts)


def num_duplicates(conversations: Sequence[Conversation]) -> int:
    """Return how many conversations are the same as an earlier one, word for word."""
    return len(conversations) - len({json.dumps(c.record, sort_keys=True) for c in conversations})


def held_out(conversations: Sequence[Conversation], share: float, seed: int) -> set[int]:
    """Return the indices of the examples to hold out: about this share, and at least one if any.

    Which prompts are held out depends on a hash of the prompt and the seed, so more data doesn't
    move earlier examples from one side to the other without need. Groups that are larger than what
    is still wanted are passed over; if all are, the smallest group is held out.

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
    """Return the conversations that stay, and those that `held_out` chooses, both in order.

    Raises:
        DataError: as `held_out`.
    """
    chosen = held_out(conversations, share, seed)
    rest = [c for index, c in enumerate(conversations) if index not in chosen]
    return rest, [conversations[index] for index in sorted(chosen)]


def _hash(prompt: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
