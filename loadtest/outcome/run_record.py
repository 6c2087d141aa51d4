"""Everything that a load-test run recorded."""

from __future__ import annotations

from dataclasses import dataclass, field

from loadtest.outcome.golden import GoldenSet
from loadtest.outcome.request_outcome import Outcome
from loadtest.plan.scenario import Scenario


@dataclass
class Run:
    """Everything that a run recorded."""

    scenario: Scenario
    url: str
    began_at: str
    base: str = ""
    """The server's name for its base."""
    seconds: float = 0.0
    """From the start of the load to its last answer."""
    complete: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    churn: list[ChurnRecord] = field(default_factory=list)
    truth: GoldenSet = field(default_factory=GoldenSet)
    pages: list[tuple[float, bytes]] = field(default_factory=list)
    cpu_share: float = 0.0
    """The share of one core that the tester itself took."""


@dataclass(frozen=True)
class ChurnRecord:
    """A change as it was carried out. Times are seconds from the start of the run."""

    at: float
    began: float
    done: float
    kind: str
    adapter: str
    version: int | None
    error: str = ""
