"""Golden answers: does an answer come from the version that the server names? Pure.

The last bits of a greedy answer depend on its batch, and near ties between tokens then end
differently. Therefore answers are compared by log-probabilities. Each golden answer is recorded
several times before the load. How much these differ is the measure of noise.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field

from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.streams import Token

MIN_TOLERANCE = 0.05
"""In nats. Smaller differences are noise on any machine."""
NOISE_FACTOR = 2.0
UNLISTED_LOGPROB = 25.0
"""Nats by which a token that isn't listed counts as less likely than the first."""


@dataclass(frozen=True)
class GoldenAnswer:
    """A greedy answer to a golden prompt."""

    text: str
    tokens: tuple[Token, ...] = ()

    @classmethod
    def of(cls, outcome: Outcome) -> GoldenAnswer:
        """Take the answer from a request's outcome."""
        return cls(outcome.text, tuple(outcome.tokens))


def distance(golden: GoldenAnswer, other: GoldenAnswer) -> float:
    """Return the largest difference of log-probabilities up to the first different token, in nats.

    There it is how much less likely the golden answer found the other's token than its own, which
    is little for a near tie. Without log-probabilities any difference is infinite.
    """
    if not golden.tokens or not other.tokens:
        return 0.0 if golden.text == other.text else float("inf")
    largest = 0.0
    for ours, theirs in zip(golden.tokens, other.tokens, strict=False):
        if ours.text != theirs.text:
            listed = ours.likeliest.get(theirs.text, ours.logprob - UNLISTED_LOGPROB)
            return max(largest, ours.logprob - listed)
        largest = max(largest, abs(ours.logprob - theirs.logprob))
    return largest


NEVER = float("inf")


@dataclass(frozen=True)
class Change:
    """An adapter's name was pointed to another version at some time between two moments."""

    adapter: str
    version: str
    began: float
    acknowledged: float


@dataclass
class GoldenSet:
    """Golden answers by version and prompt, and the verdict on answers under load."""

    tolerance: float = MIN_TOLERANCE
    golden: dict[str, dict[int, GoldenAnswer]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    """Changes of what names point to."""
    num_right: int = 0
    num_unchecked: int = 0
    """Answers to golden prompts whose version has no golden answer."""

    def record(self, version: str, prompt: int, answers: list[GoldenAnswer]) -> None:
        """Keep the first answer of some equal requests. The others show how large the noise is."""
        self.golden.setdefault(version, {})[prompt] = answers[0]
        noise = max((distance(answers[0], other) for other in answers[1:]), default=0.0)
        if noise < UNLISTED_LOGPROB:  # else the server isn't deterministic, which the run must show
            self.tolerance = max(self.tolerance, NOISE_FACTOR * noise)

    def expected(self, outcome: Outcome) -> set[str]:
        """Return the versions that may have answered: the one named, or those it pointed to."""
        if "@" in outcome.version:
            return {outcome.version}
        return _meant(self.changes, outcome)

    def judge(self, versions: set[str], prompt: int, answer: GoldenAnswer) -> str | None:
        """Return the kind of error, or None if a version's answer is right or has no golden one."""
        own = [g[prompt] for v, g in self.golden.items() if v in versions and prompt in g]
        if not own:
            self.num_unchecked += 1
            return None
        if any(distance(golden, answer) <= self.tolerance for golden in own):
            self.num_right += 1
            return None
        others = [g[prompt] for v, g in self.golden.items() if v not in versions and prompt in g]
        if any(distance(other, answer) <= self.tolerance for other in others):
            return "wrong_adapter"
        if any(_goes_on_as(golden, other, answer) for golden in own for other in others):
            return "mixed_version"
        return "wrong_answer"

    def explain(self, versions: set[str], prompt: int, answer: GoldenAnswer) -> str:
        """Say how far off an answer is, and which version's it is."""
        known = {v: g[prompt] for v, g in self.golden.items() if prompt in g}
        far = {v: distance(golden, answer) for v, golden in known.items()}
        version = min(versions & known.keys(), key=far.__getitem__)
        others = [v for v in known if v not in versions and far[v] <= self.tolerance]
        return (
            f"{version} said {answer.text!r}, its golden answer is {known[version].text!r}: "
            f"{far[version]:.3g} nats off, {self.tolerance:.3g} are noise"
            + (f"; it is that of {', '.join(others)}" if others else "")
        )

    def blind_share(self) -> float:
        """Return the share of pairs of versions that no golden prompt tells apart."""
        pairs = list(itertools.combinations(self.golden.values(), 2))
        if not pairs:
            return 0.0
        blind = sum(
            all(distance(a[prompt], b[prompt]) <= self.tolerance for prompt in a.keys() & b.keys())
            for a, b in pairs
        )
        return blind / len(pairs)


def _goes_on_as(golden: GoldenAnswer, other: GoldenAnswer, answer: GoldenAnswer) -> bool:
    """Return whether an answer begins as its own version's and ends, by tokens, as another's."""
    said = [token.text for token in answer.tokens]
    own = [token.text for token in golden.tokens]
    foreign = [token.text for token in other.tokens]
    same = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(said, own, strict=False)))
    return 0 < same < len(said) and said[same:] == foreign[same : len(said)]


def name_of(model: str) -> str:
    """Return the adapter's own name in `tenant/name@version`."""
    return model.rpartition("/")[2].partition("@")[0]


def contradiction(outcome: Outcome) -> str | None:
    """Return the kind of error if a response names another adapter, or several versions."""
    if outcome.is_mixed:
        return "mixed_version"
    if outcome.version and name_of(outcome.version) != name_of(outcome.model):
        return "wrong_adapter"
    _, _, number = outcome.model.rpartition("@")
    if number.isdigit() and outcome.version and not outcome.version.endswith(f"@{number}"):
        return "wrong_adapter"
    return None


def stale(outcomes: list[Outcome], changes: list[Change]) -> Counter[str]:
    """Mark answers of versions that had been replaced when they were asked for.

    Returns how many there are, by adapter.
    """
    found: Counter[str] = Counter()
    changed = {change.adapter for change in changes}
    for outcome in outcomes:
        if outcome.model not in changed or not outcome.ok or "@" not in outcome.version:
            continue
        if outcome.version not in _meant(changes, outcome):
            outcome.status, found[outcome.model] = "stale_version", found[outcome.model] + 1
            outcome.detail = f"{outcome.version} had been replaced"
    return found


def _meant(changes: list[Change], outcome: Outcome) -> set[str]:
    """Return the versions that the name may have pointed to between request and answer.

    If no change is recorded, it is the version that the response names.
    """
    own = [change for change in changes if change.adapter == outcome.model]
    before = [change for change in own if change.acknowledged <= outcome.sent]
    last = max(before, key=lambda change: change.acknowledged, default=None)
    return {last.version if last else outcome.version} | {
        c.version for c in own if c.acknowledged > outcome.sent and c.began <= outcome.done
    }
