"""Which versions may answer a request, and whether an answer is its version's own. Pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loadtest.outcome.golden import GoldenAnswer
from loadtest.outcome.request_outcome import Outcome
from tests.soak.fleet import COMPOSED
from tests.soak.golden import GoldenAnswers, distance, is_like

BASE = "base"
FOREVER = float("inf")


@dataclass(frozen=True)
class Question:
    """What a request asks."""

    tenant: str
    model: str
    is_chat: bool
    tokens: int
    hang_up_after: int | None = None
    subject: str = ""
    """The adapter `tenant/name`; empty for the base and for a composition."""
    number: int | None = None
    """The version, if `model` names one."""
    content: str = BASE
    """What a base or a composition answers by."""

    @property
    def prompt(self) -> int:
        """Return the number of the golden prompt."""
        return int(self.is_chat)


@dataclass
class Span:
    """The versions that a name may have meant for a time."""

    versions: frozenset[int]
    began: float
    ended: float = FOREVER


@dataclass
class Timeline:
    """What each name may have meant when. Between a change's request and its answer, both."""

    now: Callable[[], float]
    _spans: dict[str, list[Span]] = field(default_factory=dict)

    @contextlib.contextmanager
    def changing(self, subject: str, *versions: int) -> Iterator[None]:
        """Note that a name is pointed to other versions within the context.

        If the change fails, the name may mean the former ones or these from then on.
        """
        spans = self._spans.setdefault(subject, [])
        before = [span for span in spans if span.ended == FOREVER]
        spans.append(Span(frozenset(versions), self.now()))
        yield
        for span in before:
            span.ended = self.now()

    def meant(self, subject: str, sent: float, answered: float) -> set[int]:
        """Return the versions that a name may have meant at any time between these two."""
        spans = self._spans.get(subject, [])
        return {
            version
            for span in spans
            if span.began <= answered and span.ended >= sent
            for version in span.versions
        }


@dataclass
class Truth:
    """Golden answers by content, the content of each version, and what names mean."""

    timeline: Timeline
    golden: GoldenAnswers = field(default_factory=GoldenAnswers)
    contents: dict[str, str] = field(default_factory=dict)
    """By what a response calls its model."""
    distances: list[float] = field(default_factory=list)
    """How far right answers were from the golden ones, in nats."""

    def fault(self, asked: Question, outcome: Outcome) -> tuple[str, str] | None:
        """Return what is wrong with an answer, a kind and an explanation; None if it is right.

        An answer that the client left is compared as far as it came.
        """
        if outcome.is_mixed:
            return "mixed_version", f"{asked.model}: the answer names several versions"
        allowed = self._allowed(asked, outcome)
        if outcome.version not in allowed:
            kind = "stale_version" if self._is_of(asked, outcome.version) else "wrong_adapter"
            detail = f"{asked.model}: {outcome.version} answered, and not one of {sorted(allowed)}"
            return kind, detail
        answer, content = GoldenAnswer.of(outcome), allowed[outcome.version]
        if not answer.tokens:
            return None if asked.hang_up_after else ("wrong_answer", f"{asked.model}: no tokens")
        own = self.golden.answers[content][asked.prompt]
        if is_like(own, answer) or self.golden.is_nearest(content, asked.prompt, answer):
            self.distances.append(distance(own, answer))
            return None
        others = [other for other in self.golden.like(asked.prompt, answer) if other != content]
        kind = "wrong_adapter" if others else "wrong_answer"
        golden = f", the golden answer is {own.text!r}, {distance(own, answer):.3g} nats off"
        whose = f"; it is that of {', '.join(others)}" if others else ""
        detail = f"{outcome.version} (content {content}) said {answer.text!r}{golden}{whose}"
        return kind, f"{asked.model}: {detail}"

    def _allowed(self, asked: Question, outcome: Outcome) -> dict[str, str]:
        """Return the versions that may have answered, with their contents."""
        if asked.subject:
            numbers = {asked.number}
            if asked.number is None:
                answered = outcome.done if outcome.answered is None else outcome.answered
                numbers = {*self.timeline.meant(asked.subject, outcome.sent, answered)}
            names = [f"{asked.subject}@{number}" for number in numbers]
            return {name: self.contents[name] for name in names if name in self.contents}
        if asked.content == BASE:
            return {BASE: BASE}
        is_sum = re.fullmatch(rf"{re.escape(asked.tenant)}/{COMPOSED}@\d+", outcome.version)
        return {outcome.version: asked.content} if is_sum else {}

    @staticmethod
    def _is_of(asked: Question, version: str) -> bool:
        return bool(asked.subject) and version.startswith(f"{asked.subject}@")
