"""Names of tensors that aren't PEFT's: what wrote them, and the rename that mends them.

They are refused and not renamed on the way in: such a name often means that another class of model
was trained, and a wrong guess would put weights where they don't belong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from adapters_registry.check.findings import counted
from adapters_registry.errors import Reason
from adapters_registry.families import FUSED

PREFIX = "base_model.model."
"""What PEFT puts before a module's name."""

KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_WITH_ADAPTER = re.compile(r"(?P<before>.+\.lora_[AB])\.(?P<adapter>[^.]+)\.weight")
_FROM_LAYERS = re.compile(r"(?P<before>.*?)(?P<rest>layers\.\d+\..+)")

_MARKS = {
    "_orig_mod.": "as torch.compile leaves it",
    "_fsdp_wrapped_module.": "as FSDP leaves it",
    "_checkpoint_wrapped_module.": "as activation checkpointing leaves it",
    "language_model.": "as a model for text and images has it",
    PREFIX: "twice, as PEFT leaves it when it wraps a model again",
    "module.": "as DistributedDataParallel leaves it",
}
"""Parts of names that wrappers leave, and what to say of each; the first that mends a name wins."""


_IN_MEMORY = (
    "the adapter's name, as PEFT has it in memory: save with save_pretrained, or remove it "
    "from the names"
)


@dataclass(frozen=True)
class _Cause:
    """A part of a name that shouldn't be there."""

    part: str
    where: str
    """Where it stands, if that isn't just anywhere."""
    why: str
    """What wrote it, and what to do."""


def explain(unknown: list[str], num_keys: int, modules: Collection[str], base: str) -> list[Reason]:
    """Return one reason for each cause why these keys of an adapter name no module of the base."""
    by_cause = defaultdict(list)
    for key in unknown:
        by_cause[_mark_in(key, modules) or _prefix_of(key, modules)].append(key)
    return [
        counted("unknown_key", _line(keys, num_keys, cause, base), keys)
        for cause, keys in by_cause.items()
    ]


def _line(keys: list[str], num_keys: int, cause: _Cause | None, base: str) -> str:
    if len(keys) == 1:
        which, have, them = keys[0], "has", "it"
    else:
        all_or_some = f"all {num_keys}" if len(keys) == num_keys else f"{len(keys)} of {num_keys}"
        which, have, them = f"{all_or_some} keys", "have", "them"
    if cause is not None:
        return f"{which} {have} {cause.part!r} {cause.where or f'in {them}'}, {cause.why}"
    if len(keys) == 1:
        return f"{which} is no LoRA weight of a linear layer of {base}"
    return f"{which} are no LoRA weights of linear layers of {base}, such as {keys[0]}"


def _mark_in(key: str, modules: Collection[str]) -> _Cause | None:
    """Return the part of a name without which it would name a module of the base."""
    head, rest = (PREFIX, key[len(PREFIX) :]) if key.startswith(PREFIX) else ("", key)
    for mark, why in _MARKS.items():
        if mark in rest and _names_a_module(head + rest.replace(mark, ""), modules):
            remove = "remove one of the two" if mark == PREFIX else "remove it"
            return _Cause(mark, "", f"{why}: {remove} from the names")
    if (cause := _in_other_pieces(key, modules)) is not None:
        return cause
    match = _WITH_ADAPTER.fullmatch(key)
    if match and _names_a_module(f"{match['before']}.weight", modules):
        return _Cause(f".{match['adapter'][:40]}", "", _IN_MEMORY)
    return None


def _in_other_pieces(key: str, modules: Collection[str]) -> _Cause | None:
    """Return the layer that this base has in parts, or that it has together with others."""
    for whole, parts in FUSED.items():
        for mark, own in ((whole, parts), *((part, (whole,)) for part in parts)):
            if all(_names_a_module(key.replace(f".{mark}.", f".{name}."), modules) for name in own):
                has = f"which this base has as {' and '.join(own)}"
                if mark == whole:
                    return _Cause(mark, "", f"{has}: give each of these A and its own rows of B")
                return _Cause(mark, "", f"{has}: train on this base, whose layers are fused")
    return None


def _prefix_of(key: str, modules: Collection[str]) -> _Cause | None:
    """Return what stands before the layers, if the rest would name a module of the base."""
    match = _FROM_LAYERS.fullmatch(key)
    expected = PREFIX + next((name.partition("layers.")[0] for name in modules), "")
    if not match or not _names_a_module(f"{expected}{match['rest']}", modules):
        return None
    why = (
        f"this base's keys have {expected!r}: train the causal language model, or rename them if "
        "it is the same model"
    )
    return _Cause(match["before"][:80], "before 'layers.'", why)


def _names_a_module(key: str, modules: Collection[str]) -> bool:
    match = KEY.fullmatch(key)
    return match is not None and match["module"] in modules
