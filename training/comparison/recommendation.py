"""Recommends the method with the least effort that is as good as the best one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from training.comparison.results import Comparison, Row


def recommendation(comparison: Comparison, margin: float = 0.01) -> str:
    """Return a sentence that names the arm with the least effort that is as good as the best.

    An arm is as good as the best if the difference is not significant, or at most `margin`. The
    effort rises from a prompt over LoRA and QLoRA (its base must be rounded for serving) to full
    training (which makes a base of its own). Of two arms with the same method, the one with fewer
    trained parameters takes less effort.
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
    """Return the reasons to doubt the table, one line for each."""
    return [
        f"{row.name}: the best learning rate, {row.learning_rate:.2g}, is at the edge of those "
        "tried; repeat with more values of --rate (factors of the method's own rate)"
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
