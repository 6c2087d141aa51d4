"""Decides on which servers a version may serve. A verdict holds only for the base of its check.

A base is identified by its fingerprint. A version's row has the verdicts of all bases, so servers
with different bases can share a registry: each reads its own verdicts. A ready version that was not
accepted on a server's base is `incompatible` there. So is a version whose rank is over the server's
limit, whatever the verdicts are. This state is computed when a row is read, and is never stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from adapters_registry.check.ranks import limit_for
from adapters_registry.records.tables import UNDER_CHECK, Version, VersionState

OTHER_BASE = "other_base"
"""The code of the reason of a version that was never checked on this server's base."""
NEVER_TRIED = "never_tried"
"""The code of the reason of a version that was kept for a server with a higher limit of ranks."""
RANK_TOO_LARGE = "rank_too_large"
"""The code of the reason of a version whose rank is over this server's limit, as in checks."""
ALLOW_BASE_MISMATCH = "allow_base_mismatch"
"""The entry of a version's metadata that lets it pass though it names another base."""
_SHOWN_DIGITS = 12


class ServedBase(NamedTuple):
    """The base of a server, as the registry knows it."""

    name: str = ""
    fingerprint: str = ""
    max_rank: int | None = None
    """The largest rank of an adapter that this server accepts, None if it isn't known."""

    def __str__(self) -> str:
        return f"{self.name} (fingerprint {self.fingerprint[:_SHOWN_DIGITS] or 'unknown'})"


UNKNOWN_BASE = ServedBase()


def state_on(row: Version, base: ServedBase) -> VersionState:
    """Return a version's state for a server with this base.

    A version of which no base is recorded comes from an earlier release. It is trusted until
    `adopt_unknown` has recorded one.
    """
    state = VersionState(row.state)
    if is_over_rank(row, base):
        return VersionState.INCOMPATIBLE
    if row.base is None:
        return state
    if state in UNDER_CHECK:
        return state if row.base == base.fingerprint else VersionState.INCOMPATIBLE
    if state is VersionState.READY and not _is_accepted(row.base_verdicts.get(base.fingerprint)):
        return VersionState.INCOMPATIBLE
    return state


def reasons_on(row: Version, base: ServedBase) -> list[dict[str, Any]]:
    """Return why a version is not offered on this base, empty if there is no reason."""
    if state_on(row, base) is not VersionState.INCOMPATIBLE:
        return row.reasons or []
    if is_over_rank(row, base):
        return [{"code": RANK_TOO_LARGE, "message": _why_over_rank(row, base), "key": None}]
    verdict = row.base_verdicts.get(base.fingerprint)
    if verdict:
        return list(verdict["reasons"])
    if row.base == base.fingerprint and not row.base_verdicts:
        message = (
            "its rank was over the limit when it was registered, so it was kept and never tried: "
            f"`loraplex adapters recheck {row.adapter.name}` checks it on this server"
        )
        return [{"code": NEVER_TRIED, "message": message, "key": None}]
    accepted = {fp: v["base"] for fp, v in row.base_verdicts.items() if _is_accepted(v)}
    others = [str(ServedBase(name, fingerprint)) for fingerprint, name in accepted.items()]
    was = f"checked on the base {' and '.join(others)}" if others else "registered for another base"
    message = (
        f"it was {was}, and this server's base is {base}: "
        f"`loraplex adapters recheck {row.adapter.name}` checks it on this base"
    )
    return [{"code": OTHER_BASE, "message": message, "key": None}]


def is_over_rank(row: Version, base: ServedBase) -> bool:
    """Return whether a ready version has a rank over this server's limit.

    It was accepted by a server with a higher limit: this one before a restart, or another one.
    """
    if row.rank is None or base.max_rank is None or row.state != VersionState.READY:
        return False
    return row.rank > base.max_rank


def _why_over_rank(row: Version, base: ServedBase) -> str:
    limit = limit_for(row.rank or 0)
    remedy = f"restart it with --max-lora-rank {limit}, or " if limit else ""
    return (
        f"its rank {row.rank} is over this server's limit of {base.max_rank} "
        f"(LORAPLEX_MAX_LORA_RANK): {remedy}use a version of a smaller rank"
    )


def details_on(row: Version, base: ServedBase) -> dict[str, Any]:
    """Return a version's metadata, with what the gate found on this base."""
    verdict = row.base_verdicts.get(base.fingerprint, {})
    found = {"checked": verdict["checked"]} if "checked" in verdict else {}
    return {**(row.details or {}), **found}


def record_verdict(
    row: Version,
    base: ServedBase,
    *,
    checked: dict[str, Any] | None = None,
    reasons: list[dict[str, Any]] | None = None,
) -> None:
    """Note that a version was accepted on a base, or refused where there are `reasons`.

    `checked` is what the gate found on this base, where that differs from the version's details.
    """
    verdict: dict[str, Any] = {"base": base.name}
    if checked is not None:
        verdict["checked"] = checked
    if reasons is not None:
        verdict["reasons"] = reasons
    row.base = row.base or base.fingerprint
    row.base_verdicts = {**row.base_verdicts, base.fingerprint: verdict}


def allow_base_mismatch(row: Version) -> None:
    """Let the version pass its next check though it names another base."""
    row.details = {**(row.details or {}), ALLOW_BASE_MISMATCH: True}


def _is_accepted(verdict: dict[str, Any] | None) -> bool:
    return verdict is not None and not verdict.get("reasons")
