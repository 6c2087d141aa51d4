"""Everything that a load-test run recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.outcome.golden import Truth
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Scenario


@dataclass
class Run:
    """Everything that a run has brought."""

    scenario: Scenario
    url: str
    began_at: str
    base: str = ""
    """What the server calls its base."""
    seconds: float = 0.0
    """Until the last answer."""
    complete: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    churn: list[ChurnRecord] = field(default_factory=list)
    truth: Truth = field(default_factory=Truth)
    pages: list[tuple[float, bytes]] = field(default_factory=list)
    cpu_share: float = 0.0
    """Of one core, that the tester itself took."""


@dataclass(frozen=True)
class ChurnRecord:
    """A change as it went; times are seconds from the start of the run."""

    at: float
    began: float
    done: float
    kind: str
    adapter: str
    version: int | None
    error: str = ""
