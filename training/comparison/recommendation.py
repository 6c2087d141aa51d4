"""What to take: the method with the least effort that is as good as the best."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from training.comparison.results import Comparison, Row


def recommendation(comparison: Comparison, margin: float = 0.01) -> str:
    """Name the arm with the least effort to which none is better by more than `margin`.

    A difference counts where it is significant. Effort, from the least: a prompt, LoRA, QLoRA (its
    base must be rounded for serving), full (a base of its own). Of two arms of one method the one
    with fewer trained parameters takes less.
    """
    effort = {"": 0, "lora": 1, "qlora": 2, "full": 3}
    rows = sorted(comparison.rows, key=lambda row: (effort[row.method], row.num_trainable))
    by_name = {row.name: row for row in rows}
    best = by_name[comparison.best]
    chosen = next(row for row in rows if _is_as_good(row, comparison, margin))
    if chosen is best:
        return f"take {chosen.name}: nothing with less effort is as good"
    gap = comparison.behind_best[chosen.name]
    half = 100 * (gap.high - gap.low) / 2
    verdict = "significant" if gap.is_significant else "not significant"
    text = (
        f"stay with {chosen.name}: {best.name} is {100 * abs(gap.mean):.1f} ± {half:.1f} points "
        f"better in {comparison.metric}, {verdict}"
    )
    if chosen.peak_mib and best.peak_mib:
        text += f", at {best.peak_mib / chosen.peak_mib:.1f} × the memory"
    return text


def caveats(comparison: Comparison) -> list[str]:
    """Return what speaks against taking the table as it is, a line each."""
    return [
        f"{row.name}: {row.learning_rate:.2g} is at the edge of the rates that were tried; repeat "
        "with more of --rate, as factors of the method's own"
        for row in comparison.rows
        if row.rate_is_at_edge
    ]


def _is_as_good(row: Row, comparison: Comparison, margin: float) -> bool:
    if row.name == comparison.best:
        return True
    gap = comparison.behind_best[row.name]
    return not gap.is_significant or abs(gap.mean) <= margin


def to_json(comparison: Comparison) -> str:
    """Return the comparison as JSON, without the scores of single examples."""
    rows = []
    for row in comparison.rows:
        facts = asdict(replace(row, runs=[]))
        del facts["runs"]
        facts |= {"scores": row.scores.summary(), "by_seed": row.by_seed(comparison.metric)}
        rows.append(facts)
    facts = asdict(replace(comparison, rows=[])) | {"rows": rows}
    facts |= {"recommendation": recommendation(comparison), "caveats": caveats(comparison)}
    return json.dumps(facts, indent=1)
