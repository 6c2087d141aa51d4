"""Reads stop tokens and sampling defaults from an adapter's `generation_config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapters_registry.check.companions.serving_defaults import CompanionFindings, differing, listed
from adapters_registry.check.companions.vocabulary import Vocabulary
from adapters_registry.content.adapter_files import GENERATION_FILE

MAX_STOP_TOKENS = 32
_SHOWN = 5
_SAMPLING: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (1e-6, 1.0),
    "top_k": (-1, 1 << 20),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 100.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "max_new_tokens": (1, 1 << 24),
}
"""The sampling defaults that a version may set, with their allowed values."""
_WHOLE = frozenset({"top_k", "max_new_tokens"})


def stop_tokens(
    values: Mapping[str, dict[str, Any]],
    of_base: Mapping[str, dict[str, Any]],
    tokens: Mapping[str, str],
    vocabulary: Vocabulary,
    findings: CompanionFindings,
) -> list[int]:
    """Return the ids of tokens that end the adapter's answers but not the base's."""
    eos = values[GENERATION_FILE].get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if any(type(each) is not int or not vocabulary.has_id(each) for each in ids) or (
        len(ids) > MAX_STOP_TOKENS
    ):
        message = f"eos_token_id of {GENERATION_FILE} must name at most {MAX_STOP_TOKENS} of the"
        findings.refuse("bad_generation_config", f"{message} base's tokens", GENERATION_FILE)
        return []
    base_eos = of_base[GENERATION_FILE].get("eos_token_id")
    known = {*(base_eos if isinstance(base_eos, list) else [base_eos])}
    known.add(vocabulary.id_of(vocabulary.special.get("eos_token", "")))
    if (named := vocabulary.id_of(tokens.get("eos_token", ""))) is not None:
        ids = [*ids, named]
    own = [each for each in dict.fromkeys(ids) if each not in known]
    if own:
        shown = ", ".join(vocabulary.text_of(each) for each in own[:_SHOWN])
        findings.warnings.append(f"its answers also end at {shown}, as its files say")
    return own


def sampling_defaults(
    values: Mapping[str, dict[str, Any]],
    of_base: Mapping[str, dict[str, Any]],
    findings: CompanionFindings,
) -> dict[str, float]:
    """Return the sampling defaults that it brings and that aren't the base's."""
    own, known = values[GENERATION_FILE], of_base[GENERATION_FILE]
    if own.get("do_sample") is False and known.get("do_sample") is not False:
        own = {**own, "temperature": 0.0}
    found: dict[str, float] = {}
    for name, (least, most) in _SAMPLING.items():
        value = own.get(name)
        if value is None or value == known.get(name):
            continue
        allowed = int if name in _WHOLE else int | float
        if isinstance(value, bool) or not isinstance(value, allowed) or not least <= value <= most:
            message = f"{name} of {GENERATION_FILE} must be a number from {least:g} to {most:g}"
            findings.refuse("bad_generation_config", message, GENERATION_FILE)
        elif math.isfinite(value):
            found[name] = value
    if found:
        shown = ", ".join(f"{name} {value:g}" for name, value in found.items())
        findings.warnings.append(f"its own defaults hold for its requests: {shown}")
    used = {*_SAMPLING, "eos_token_id", "do_sample"}
    rest = sorted(key for key in differing(own, known) if key not in used)
    if rest:
        findings.warnings.append(f"{GENERATION_FILE}: not used here: {listed(rest)}")
    return found
