"""Rounds of two servers as one table in Markdown. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loadtest.outcome.request_outcome import WRONG
from loadtest.report.comparison import RESAMPLES, Row, compare
from loadtest.report.recorded import Recorded

MEASURES = (
    "output tokens/s",
    "first token P50, ms",
    "first token P99, ms",
    "time per output token P50, ms",
    "end to end P50, ms",
)


@dataclass(frozen=True)
class Part:
    """One server's run in one round, or why there is none."""

    run: Recorded | None
    why_not: str = ""


@dataclass
class Contest:
    """One scenario: the rounds of ours and of the peer, or why the peer can't do it."""

    scenario: str
    ours: list[Part] = field(default_factory=list)
    peers: list[Part] = field(default_factory=list)
    refusal: str | None = None

    def rounds(self) -> list[tuple[Recorded, Recorded]]:
        """Peer's and ours, where both have a run."""
        pairs = zip(self.peers, self.ours, strict=False)
        return [(peer.run, ours.run) for peer, ours in pairs if peer.run and ours.run]


def markdown(contests: list[Contest], ours: str, peer: str, resamples: int = RESAMPLES) -> str:
    """Return the table, and below it what went wrong."""
    lines = [f"| | | {ours} | {peer} | ratio (95 % interval) |", "|---|---|---|---|---|"]
    remarks: list[str] = []
    for contest in contests:
        rows = list(_rows(contest, resamples))
        for number, cells in enumerate(rows):
            title = f"**{contest.scenario}**" if number == 0 else ""
            lines.append("| " + " | ".join([title, *cells]) + " |")
        for name, parts in ((ours, contest.ours), (peer, contest.peers)):
            remarks += [f"* {contest.scenario}, {name}: {text}" for text in _remarks(parts)]
    return "\n".join([*lines, "", *dict.fromkeys(remarks)]).rstrip()


def _rows(contest: Contest, resamples: int) -> Iterator[tuple[str, str, str, str]]:
    """What both did, or else what ours did alone."""
    if rounds := contest.rounds():
        compared = {row.name: row for row in compare(rounds, resamples=resamples)}
        for name in MEASURES:
            yield name, *_cells(compared.get(name))
    elif alone := [part.run for part in contest.ours if part.run]:
        compared = {
            row.name: row for row in compare([(run, run) for run in alone], resamples=resamples)
        }
        why = f"can't: {contest.refusal}" if contest.refusal else "no figures"
        for number, name in enumerate(MEASURES):
            yield name, _cells(compared.get(name))[0], "" if number else why, ""
    else:
        yield "no figures", "", f"can't: {contest.refusal}" if contest.refusal else "", ""
    for name, counted in (("failed", _failed), ("wrong answers", _wrong), ("changes", _changes)):
        ours, theirs = counted(_summaries(contest.ours)), counted(_summaries(contest.peers))
        if ours or theirs:
            yield name, ours, theirs, ""


def _cells(row: Row | None) -> tuple[str, str, str]:
    if row is None:
        return "–", "–", ""
    figures = [
        f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in (row.second, row.first)
    ]
    if not row.first or not row.second:
        return figures[0], figures[1], ""
    return figures[0], figures[1], f"{row.ratio:.2f} ({row.low:.2f} to {row.high:.2f})"


def _summaries(parts: list[Part]) -> list[dict[str, Any]]:
    return [part.run.summary for part in parts if part.run]


def _failed(summaries: list[dict[str, Any]]) -> str:
    counts = [summary["requests"] for summary in summaries]
    if not counts:
        return ""
    return f"{sum(c['failed'] for c in counts)} of {sum(c['total'] for c in counts)}"


def _wrong(summaries: list[dict[str, Any]]) -> str:
    checked = sum(summary["truth"]["checked"] for summary in summaries)
    wrong = sum(summary["truth"][kind] for summary in summaries for kind in WRONG)
    return f"{wrong} of {checked} checked" if checked or wrong else ""


def _changes(summaries: list[dict[str, Any]]) -> str:
    changes = [change for summary in summaries for change in summary["churn"]]
    failed = sum(bool(change["error"]) for change in changes)
    return f"{failed} of {len(changes)} failed" if changes else ""


def _remarks(parts: list[Part]) -> Iterator[str]:
    for number, part in enumerate(parts, 1):
        if part.why_not:
            yield f"round {number}: {part.why_not}"
    summaries = _summaries(parts)
    errors: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for summary in summaries:
        for kind, error in summary["errors"].items():
            errors[kind] += error["count"]
            examples.setdefault(kind, error["example"])
        for change in summary["churn"]:
            if change["error"]:
                errors[f"{change['kind']} not done"] += 1
                examples.setdefault(f"{change['kind']} not done", change["error"])
        if summary["tester"]["is_bottleneck"]:
            yield "the tester was the bottleneck in a round"
    for kind, number in errors.most_common():
        yield f"{number} × {kind} ({examples[kind]})"
