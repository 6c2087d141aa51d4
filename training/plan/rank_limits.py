"""Which limit of ranks pays for a set of adapters: a server's slots have room for the limit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters_registry.check.peft_config import PeftConfig
from adapters_registry.check.ranks import RANK_LIMITS
from adapters_registry.content.adapter_files import CONFIG_FILE, WEIGHTS_FILE, digest_of
from training.errors import TrainingError
from training.plan.memory import Shape

ENOUGH = 0.9
"""The share of the adapters that should fit as they are. The rest can be served as best fits."""


@dataclass(frozen=True)
class LimitPlan:
    """What one limit takes, and what it lets in."""

    limit: int
    slot_bytes: int
    slots_bytes: int
    """Of all slots together."""
    num_fitting: int
    share: float
    """The share of the adapters that fit as they are."""


def ranks_of(folders: Sequence[Path]) -> dict[str, int]:
    """Return the rank of each adapter, by its directory. A folder may hold many adapters.

    Raises:
        TrainingError: a folder has no adapter, or a configuration can't be read.
    """
    ranks = {}
    for folder in folders:
        found = list(_adapters_in(folder))
        if not found:
            raise TrainingError(f"{folder} has no adapter: there is no {CONFIG_FILE} in it")
        for config in found:
            ranks[str(config.parent)] = _rank_in(config)
    return ranks


def digests_of(directories: Iterable[str]) -> set[str]:
    """Return the digests of adapters by which a server knows them. One without weights has none."""
    folders = map(Path, directories)
    return {digest_of(folder)[0] for folder in folders if (folder / WEIGHTS_FILE).is_file()}


def plan_limits(shape: Shape, ranks: Sequence[int], num_slots: int) -> list[LimitPlan]:
    """Return a plan for each limit, the smallest first, up to the first at which all fit."""
    plans = []
    for limit in RANK_LIMITS:
        slot_bytes, fitting = shape.slot_bytes(limit), sum(rank <= limit for rank in ranks)
        share = fitting / len(ranks)
        plans.append(LimitPlan(limit, slot_bytes, num_slots * slot_bytes, fitting, share))
        if fitting == len(ranks):
            break
    return plans


def choose_limit(plans: Sequence[LimitPlan]) -> LimitPlan:
    """Return the smallest limit that lets enough adapters in, or the largest if none does."""
    return next((plan for plan in plans if plan.share >= ENOUGH), plans[-1])


def _adapters_in(folder: Path) -> Iterator[Path]:
    if (folder / CONFIG_FILE).is_file():
        yield folder / CONFIG_FILE
    else:
        yield from sorted(folder.glob(f"*/{CONFIG_FILE}"))


def _rank_in(config: Path) -> int:
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        return max(rank for _, rank in PeftConfig(values).claimed_ranks())
    except (OSError, ValueError, AttributeError) as error:
        raise TrainingError(f"can't read the rank in {config}: {error}") from error
