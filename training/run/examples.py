"""Turns conversations into samples to train on and to validate on, with notes for the user."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.conversations import Conversation
from training.data.recipe import Recipe
from training.data.rendering import Renderer
from training.data.special_tokens import special_tokens_in
from training.data.splitting import held_out, num_duplicates
from training.data.tokenization import Sample, tokenize_all
from training.errors import DataError


@dataclass(frozen=True)
class Examples:
    """Samples to train on and to validate on, and notes about them for the user."""

    train: list[Sample]
    validation: list[Sample]
    num_validation: int
    """Number of conversations that are held out."""
    num_duplicates: int
    """Number of conversations that repeat an earlier one word for word."""
    notes: list[str]


def make_examples(
    base: Path, conversations: Sequence[Conversation], recipe: Recipe, renderer: Renderer
) -> Examples:
    """Tokenise the conversations, and hold out a share of the prompts for validation.

    Raises:
        DataError: examples are too long, too few, or can't be rendered; or they hold special tokens
            and the recipe refuses these.
    """
    if not conversations:
        raise DataError("there is nothing to train on")
    repeated = num_duplicates(conversations)
    notes = [f"{repeated:,} example(s) repeat an earlier one word for word"] if repeated else []
    special = special_tokens_in(renderer.tokenizer, conversations)
    if special.num_examples and recipe.refuse_special_tokens:
        raise DataError(f"{special}; correct them, or train without --refuse-special-tokens")
    notes += [str(special)] if special.num_examples else []
    if recipe.chat_template and recipe.has_adapter:
        notes.append(
            "the adapter is trained with a chat template of its own, which is written beside it: "
            "check that the server renders requests with this template, not with the base's"
        )
    samples = tokenize_all(renderer, conversations, recipe.max_length, recipe.truncate)
    notes += _ending(base, renderer.tokenizer, [group[-1] for group in samples])
    chosen = held_out(conversations, recipe.validation_share, recipe.seed)
    return Examples(
        [sample for i, group in enumerate(samples) if i not in chosen for sample in group],
        [sample for i in sorted(chosen) for sample in samples[i]],
        len(chosen),
        repeated,
        notes,
    )


def _ending(base: Path, tokenizer: Any, samples: list[Sample]) -> list[str]:
    """Return a note if the server wouldn't stop at the token that answers end with."""
    (token, _), *_ = Counter(sample.answer_ids[-1] for sample in samples).most_common(1)
    stops = stop_tokens(base) | {tokenizer.eos_token_id}
    if token in stops:
        return []
    text = tokenizer.convert_ids_to_tokens(token)
    return [
        f"answers end with {text!r} (token {token}), at which this base doesn't stop: add {token} "
        "to eos_token_id in the base's generation_config.json, or answers will run on"
    ]


def stop_tokens(base: Path) -> set[int]:
    """Return the tokens that end an answer according to the base's generation settings."""
    for name in ("generation_config.json", "config.json"):
        try:
            ids = json.loads((base / name).read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError):
            continue
        if ids is not None:
            return set(ids if isinstance(ids, list) else [ids])
    return set()
