"""What holds for a version's requests in place of the base's, and what is found of it."""

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
"""Keys that are read elsewhere, or change nothing in how a prompt is made or answered."""


@dataclass(frozen=True)
class ServingDefaults:
    """What holds for a version's requests in place of the base's, where it isn't the base's."""

    chat_template: str = ""
    """The sha256 of its own chat template; empty: it uses the base's."""
    content_format: str = ""
    """How its own template takes a message's content: `string` or `openai` (a list of parts)."""
    special_tokens: dict[str, str] = field(default_factory=dict)
    """What its template sees under names such as `eos_token`, where that is not the base's."""
    stop_token_ids: list[int] = field(default_factory=list)
    """These end an answer too."""
    sampling: dict[str, float] = field(default_factory=dict)
    """Holds where a request doesn't say otherwise; `max_new_tokens` is the longest answer."""


@dataclass
class CompanionFindings:
    """What was found beside the weights."""

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
    """Whether two tokenizers are the same; older files have merges as texts, newer ones as pairs,
    and leave out what is null."""
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
