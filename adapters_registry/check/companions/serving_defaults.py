"""A version's own defaults for its requests, and what the check has found about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from adapters_registry.errors import Reason

_SHOWN = 5
_NO_EFFECT = frozenset(
    {
        *("transformers_version", "_from_model_config", "tokenizer_class", "chat_template"),
        *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"),
        *("padding_side", "pad_token", "padding", "truncation", "truncation_side"),
        *("backend", "is_local", "name_or_path", "processor_class", "clean_up_tokenization_spaces"),
        *("bos_token_id", "pad_token_id", "use_cache", "local_files_only", "version"),
    }
)
"""Keys that are read elsewhere, or that have no effect on prompts and answers."""


@dataclass(frozen=True)
class ServingDefaults:
    """A version's own defaults for its requests. If a field is empty, the base's default holds."""

    chat_template: str = ""
    """The sha256 of its own chat template. Empty if it uses the base's."""
    content_format: str = ""
    """How its own template takes a message's content: `string` or `openai` (a list of parts)."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """The texts of names such as `eos_token` in its template, if they differ from the base's."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Tokens that end its answers, in addition to the base's."""
    sampling: dict[str, float] = field(default_factory=dict)
    """Sampling defaults, which a request may override. `max_new_tokens` is the longest answer."""


@dataclass
class CompanionFindings:
    """The findings about the files beside the weights."""

    reasons: list[Reason] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    defaults: ServingDefaults = field(default_factory=ServingDefaults)

    def refuse(self, code: str, message: str, file: str) -> None:
        """Add a reason to refuse the adapter."""
        self.reasons.append(Reason(code, message, file))


def differing(own: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """Yield the keys of an adapter's file in which it differs from the base's, as far as counts."""
    for key, value in own.items():
        of_base = known.get(key)
        if key in _NO_EFFECT or value is None or value == of_base:
            continue
        if key == "model" and _is_same_model(value, of_base):
            continue
        yield key


def _is_same_model(own: Any, known: Any) -> bool:
    """Return whether two tokenizers are the same.

    Older files have merges as texts. Newer ones have them as pairs, and leave out null values.
    """
    plain = [
        {
            key: [" ".join(pair) if isinstance(pair, list) else pair for pair in value]
            if key == "merges" and isinstance(value, list)
            else value
            for key, value in model.items()
            if value not in (None, False)
        }
        for model in (own, known)
        if isinstance(model, dict)
    ]
    return len(plain) == 2 and plain[0] == plain[1]


def listed(names: list[str]) -> str:
    """Return the first of some names as a message shows them, and how many more there are."""
    shown = ", ".join(name[:60] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
