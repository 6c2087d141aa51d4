"""Which versions can be added to one, with which weights, and what the sum is known by."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_registry.check.companions.companions import chat_template_of
from adapters_registry.check.weights import TRAINED_QUANTIZATION
from adapters_registry.composition.weighted_sum import FitError, WeightedSum
from adapters_registry.content.adapter_files import TEMPLATE_FILE, companions_in
from adapters_registry.errors import CannotCompose
from adapters_registry.records.catalog import VersionRecord
from adapters_registry.trust.made_versions import SIGNED_BY, signatures_of

MAX_PARTS = 8
MAX_WEIGHT = 100.0
MAX_FIT_RANK = 1024
"""The largest exact rank of which a best fit is computed. The time grows with its square."""
WEIGHT_DIGITS = 6
"""Significant digits of a weight, fewer than float32 has: other weights make another content."""


@dataclass(frozen=True)
class WeightedVersion:
    """A ready version, and how often it is added."""

    version: VersionRecord
    weight: float

    def __str__(self) -> str:
        return f"{self.version.public_name}*{self.weight:g}"


def check_count(num_parts: int) -> None:
    """Raise `CannotCompose` unless so many parts can be added."""
    if not 1 <= num_parts <= MAX_PARTS:
        raise CannotCompose(f"a composition has 1 to {MAX_PARTS} parts, not {num_parts}")


def check_weight(weight: float) -> None:
    """Raise `CannotCompose` unless a part can have this weight."""
    if not math.isfinite(weight) or not 0 < abs(weight) <= MAX_WEIGHT:
        raise CannotCompose(
            f"a part's weight is a number from -{MAX_WEIGHT:g} to {MAX_WEIGHT:g} other than 0, not "
            f"{weight:g}"
        )


def checked_parts(parts: Sequence[WeightedVersion]) -> tuple[WeightedVersion, ...]:
    """Return the parts in the order of their digests, each content once, if they can be added.

    Raises:
        CannotCompose: there are too many, a weight is not allowed, the weights of a version add up
            to 0, or the parts were trained over different bases or for different prompts.
    """
    check_count(len(parts))
    by_digest: dict[str, WeightedVersion] = {}
    for part in parts:
        check_weight(part.weight)
        part = WeightedVersion(part.version, _rounded(part.weight))
        before = by_digest.get(part.version.digest)
        if before is not None:
            part = WeightedVersion(before.version, _rounded(before.weight + part.weight))
        by_digest[part.version.digest] = part
    together = tuple(by_digest[digest] for digest in sorted(by_digest))
    for part in together:
        if part.weight == 0:
            raise CannotCompose(f"the weights of {part.version.public_name} add up to 0")
    _check_quantization(together)
    _check_templates(together)
    return together


def quantization_of_parts(parts: Sequence[WeightedVersion]) -> str | None:
    """Return what the base's weights were rounded to in training. Empty: nothing. None: unknown."""
    known = (_checked(part).get("trained_over") for part in parts)
    return next((str(over) for over in known if over is not None), None)


def file_metadata(parts: Sequence[WeightedVersion]) -> dict[str, str]:
    """Return the metadata of the file of weights."""
    over = quantization_of_parts(parts)
    return {} if over is None else {TRAINED_QUANTIZATION: over}


def check_rank(total: WeightedSum, rank: int | None, max_rank: int) -> None:
    """Raise `CannotCompose` if the server cannot serve the sum, or cannot compute its fit.

    `rank` is what the caller has asked for, and `max_rank` is the server's limit.
    """
    exact = total.exact_rank
    if rank is not None and rank > max_rank:
        raise CannotCompose(
            f"rank {rank} is over this server's limit of {max_rank} (LORAPLEX_MAX_LORA_RANK)"
        )
    if rank is None and exact > max_rank:
        raise CannotCompose(
            f"the ranks of the parts add up to {exact}, over this server's limit of {max_rank} "
            f"(LORAPLEX_MAX_LORA_RANK): with a rank of at most {max_rank} (--rank {max_rank}) the "
            "server makes the best fit of that rank, and says by how much it differs from the "
            "exact sum"
        )
    if rank is not None and rank < exact > MAX_FIT_RANK:
        raise CannotCompose(
            f"the ranks of the parts add up to {exact}, and a fit is made of at most "
            f"{MAX_FIT_RANK}: take fewer parts"
        )


def key_of(parts: Sequence[WeightedVersion]) -> str:
    """Return what the exact sum of these parts is known by. `checked_parts` orders them."""
    named = [[part.version.digest, part.weight] for part in parts]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


def composed_entry(
    parts: Sequence[WeightedVersion], rank: int | None, error: FitError, tenant: str
) -> dict[str, Any]:
    """Return what the metadata of a tenant's composition say.

    `rank` is that of a fit, if one was made.
    """
    entry: dict[str, Any] = {
        "parts": [
            {
                "model": part.version.public_name,
                "version_id": part.version.version_id,
                "digest": part.version.digest,
                "weight": part.weight,
                **_signed(part.version, tenant),
            }
            for part in parts
        ],
        "rank": rank,
        "error": error.total,
    }
    if error.total:
        entry["error_by_layer"] = error.by_layer
    if differing := _differing_defaults(parts):
        entry["defaults_of_the_base"] = differing
    return entry


def fitted_entry(original: VersionRecord, rank: int, error: FitError) -> dict[str, Any]:
    """Return what the metadata of a version's best fit say."""
    return {
        "of": {
            "model": original.public_name,
            "version_id": original.version_id,
            "digest": original.digest,
            "rank": original.rank,
            **_signed(original, original.tenant),
        },
        "rank": rank,
        "error": error.total,
        "error_by_layer": error.by_layer,
    }


def copy_companions(sources: Sequence[Path], target: Path) -> None:
    """Copy each file beside the weights that all parts have with the same content.

    The chat template is kept even if its files differ: `checked_parts` has found it to be the same.
    """
    contents = [
        {name: (source / name).read_bytes() for name in companions_in(source)} for source in sources
    ]
    for name, content in contents[0].items():
        if all(other.get(name) == content for other in contents):
            (target / name).write_bytes(content)
    template = next(filter(None, map(chat_template_of, sources)), "")
    if template and not chat_template_of(target):
        (target / TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _signed(version: VersionRecord, tenant: str) -> dict[str, Any]:
    signatures = signatures_of(version, tenant)
    return {SIGNED_BY: signatures} if signatures else {}


def _rounded(weight: float) -> float:
    return float(f"{weight:.{WEIGHT_DIGITS}g}")


def _checked(part: WeightedVersion) -> dict[str, Any]:
    found = part.version.metadata.get("checked")
    return found if isinstance(found, dict) else {}


def _serving(part: WeightedVersion) -> dict[str, Any]:
    found = _checked(part).get("serving")
    return found if isinstance(found, dict) else {}


def _check_quantization(parts: Sequence[WeightedVersion]) -> None:
    known: dict[str, str] = {}
    for part in parts:
        if (over := _checked(part).get("trained_over")) is not None:
            base = f"weights rounded to {over}" if over else "unrounded weights"
            known.setdefault(str(over), f"{part.version.public_name} over {base}")
    if len(known) > 1:
        raise CannotCompose(
            f"the parts were trained over different bases: {' and '.join(known.values())}; add "
            "adapters of one of them"
        )


def _check_templates(parts: Sequence[WeightedVersion]) -> None:
    own = {_serving(part).get("chat_template") or "": part for part in parts}
    if len(own) > 1:
        one, other = list(own.values())[:2]
        raise CannotCompose(
            f"{one.version.public_name} and {other.version.public_name} have different chat "
            "templates, so no prompt fits both: register them again with the same template"
        )


def _differing_defaults(parts: Sequence[WeightedVersion]) -> list[str]:
    """Return which defaults of their own the parts do not share. The base's are used for them."""
    fields = ("special_tokens", "stop_token_ids", "sampling")
    first = _serving(parts[0])
    return [
        name
        for name in fields
        if any((_serving(part).get(name) or None) != (first.get(name) or None) for part in parts)
    ]
