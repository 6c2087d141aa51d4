"""Compares a best fit, as it is served, with its original, which the server cannot run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.bundled_base import BundledBaseMissing, bundled_base_directory, ensure_bundled_base
from server.cli.client import CallFailed, send
from server.cli.console import say
from server.cli.training.evaluation import SERVED, Comparison, compare, open_candidate

if TYPE_CHECKING:
    from training.data.conversations import Conversation


def compare_with_original(
    version: dict[str, Any], source: str, base: Path | None, examples: list[Conversation]
) -> tuple[dict[str, Any] | None, Comparison | None]:
    """Return how far a fit's log-probabilities are from its original's, and the scores of both.

    The log-probabilities are those of built-in texts. The scores are those on the examples; there
    are none without examples. The original is run here, so its directory and the base must be on
    this machine. If they aren't, or one of the two cannot be asked, the reason is printed, and None
    is returned for what is missing.

    `version` is the fit, as the server has answered. If no `base` is named, the bundled one is
    used, where it is the server's.
    """
    from training.errors import TrainingError

    difference = comparison = None
    served = f"{SERVED}{version['model']}"
    try:
        base = _base_for(source, base)
        from training.evaluation.probes import compare_on_probes  # PyTorch takes seconds

        candidates = {name: open_candidate(name, base) for name in (served, source)}
        difference = asdict(compare_on_probes(candidates[served], candidates[source], base))
        if examples:
            comparison = compare(candidates.items(), base, examples)
    except (TrainingError, CallFailed) as error:
        say(f"the fit was not compared with its original: {error}")
    return difference, comparison


def _base_for(source: str, base: Path | None) -> Path:
    from training.errors import TrainingError

    if not Path(source).is_dir():
        raise TrainingError("the original is not in a directory on this machine")
    return base or _bundled_if_served()


def _bundled_if_served() -> Path:
    """Return the bundled base.

    Raises:
        CallFailed: the server does not say which base it has.
        TrainingError: it has another one, or the bundled base is not installed here.
    """
    from training.errors import TrainingError

    served = send("GET", "/v1/models").json()["data"][0]["root"]
    if served == bundled_base_directory().name:
        with suppress(BundledBaseMissing):
            return ensure_bundled_base()
    raise TrainingError("name the directory of the server's base with --base")
