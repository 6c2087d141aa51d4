"""A fault: what is promised of it, how it is made and mended, and what was measured."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.readers import Answers
from tests.chaos.site import Site


class Fault(ABC):
    """One kind of fault. An object of it lives for one run."""

    name: str
    promise: str
    """What a user may rely on while it lasts and afterwards."""
    done: str
    """What is done in a round, in words for the table."""
    rounds = 10
    """How often, in the long form."""
    seconds = 0.5, 3.0
    """How long it lasts: at least, at most."""
    has_drivers = True

    @abstractmethod
    def open(self, site: Site) -> None:
        """Start the parts."""

    @abstractmethod
    def inject(self, site: Site) -> None:
        """Make the fault."""

    def check(self, site: Site) -> None:  # noqa: B027 - most faults need none
        """Raise `AssertionError` if a promise is broken while the fault lasts."""

    @abstractmethod
    def heal(self, site: Site) -> None:
        """Mend what was done, as an operator would."""

    def after(self, site: Site) -> None:  # noqa: B027 - most faults need none
        """Do what is needed before the next round, once all is well."""


SAID_EVERY = 10
"""After how many rounds a run says how far it is."""


@dataclass
class Measured:
    """What came of it."""

    fault: Fault
    rounds: int = 0
    answers: Answers = field(default_factory=Answers)
    num_changes: int = 0
    num_compared: int = 0
    num_retries: int = 0
    """Of changes, because a server refused them or did not answer."""
    num_refused: int = 0
    """Answers of changed adapters that were refused."""
    broken: list[str] = field(default_factory=list)
    """Each promise that was found broken: a lost change, a wrong content, a check that failed."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from the beginning of `heal` until every server answers and takes changes."""

    @property
    def is_kept(self) -> bool:
        return not (self.broken or self.answers.failed or self.answers.wrong)

    def progress(self) -> str:
        """Return how far it is, in a line."""
        most = max(self.recoveries[-SAID_EVERY:])
        return f"    {self.rounds} rounds; the last ones recovered in at most {most:.1f} s"

    def row(self) -> str:
        """Return a row of the table in docs/operations.md."""
        wrong = len(self.answers.wrong) + sum("wrong answer" in each for each in self.broken)
        lost = len(self.broken) + len(self.answers.wrong) - wrong
        whole, excused = self.answers.num_whole, self.answers.num_excused
        recovery = "-"
        if self.recoveries:
            median, most = statistics.median(self.recoveries), max(self.recoveries)
            recovery = f"{median:.1f} (at most {most:.1f})"
        cells = (
            f"{self.fault.name}: {self.fault.done}",
            self.fault.promise,
            f"{self.rounds}",
            f"{lost} of {self.num_changes:,}",
            f"{wrong} of {whole + self.num_compared:,}",
            f"{len(self.answers.failed)} beside {excused} allowed",
            recovery,
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| fault | promise | rounds | changes lost | wrong answers | failed requests | "
    "seconds to recover: median (most) |\n|---|---|---|---|---|---|---|"
)


def measure(
    fault: Fault,
    folder: Path,
    rounds: int,
    seed: int,
    say: Callable[[str], None] = lambda _: None,
) -> Measured:
    """Make a fault again and again, with clients at work, and return what came of it.

    `say` is told now and then how far it is.
    """
    measured = Measured(fault)
    with ExitStack() as stack:
        site = Site(folder, stack, seed)
        fault.open(site)
        try:
            with site.under_load(drivers=fault.has_drivers):
                while measured.rounds < rounds and not any(d.error for d in site.drivers):
                    measured.recoveries.append(_one_round(fault, site))
                    measured.rounds += 1
                    if measured.rounds % SAID_EVERY == 0:
                        say(measured.progress())
        except AssertionError as error:
            measured.broken.append(f"round {measured.rounds + 1}: {error}")
        measured.answers = site.answers
        measured.broken += [str(driver.error) for driver in site.drivers if driver.error]
        counts = [driver.counts for driver in site.drivers]
        measured.num_changes = sum(sum(each.operations.values()) for each in counts)
        measured.num_compared = sum(each.answers for each in counts)
        measured.num_retries = sum(each.retries for each in counts)
        measured.num_refused = sum(each.refused for each in counts)
    return measured


def _one_round(fault: Fault, site: Site) -> float:
    time.sleep(site.random.uniform(0.2, 1.0))
    fault.inject(site)
    time.sleep(site.random.uniform(*fault.seconds))
    fault.check(site)
    began_at = time.monotonic()
    fault.heal(site)
    site.wait_until_well()
    for place in site.places:
        place.excuse(False)
    seconds = time.monotonic() - began_at
    fault.after(site)
    return seconds
