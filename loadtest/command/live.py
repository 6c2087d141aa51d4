"""Shows a run's progress in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from loadtest.drive.run import Observer
from loadtest.drive.runner import Runner
from loadtest.plan.scenario import Scenario

REFRESHES_PER_SECOND = 1
"""Few, because nothing is sent during the milliseconds that a drawing takes."""
RECENT = 500


class LiveView(Observer):
    """Shows how a run goes."""

    def __init__(self, scenario: Scenario, console: Console) -> None:
        """Prepare the view: `with` begins to draw it."""
        self._scenario = scenario
        self._step = "starting"
        self._runner: Runner | None = None
        self._now: Callable[[], float] = lambda: 0.0
        self._live = Live(
            get_renderable=self._draw,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            auto_refresh=console.is_terminal,
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def preparing(self, what: str) -> None:
        """Show a step of the preparation."""
        self._step = what

    def started(self, runner: Runner, now: Callable[[], float]) -> None:
        """Show the load from now on."""
        self._runner, self._now = runner, now

    @property
    def has_started(self) -> bool:
        """Return whether the load has begun."""
        return self._runner is not None

    def _draw(self) -> Table | str:
        if self._runner is None:
            return self._step
        outcomes, seconds = self._runner.outcomes, self._now()
        recent = outcomes[-RECENT:]
        since = recent[0].done if recent else 0.0
        ok = [outcome for outcome in recent if outcome.ok]
        speed = sum(o.tokens_out for o in ok) / max(seconds - since, 0.1)
        waits = [outcome.ttft * 1000 for outcome in ok if outcome.ttft is not None] or [0.0]
        median, tail = np.percentile(waits, [50, 99])
        failed = Counter(o.status for o in outcomes if o.is_error)
        view = Table.grid(padding=(0, 2))
        view.add_row("time", f"{seconds:.0f} of {self._scenario.duration_seconds:.0f} s")
        view.add_row("requests", f"{len(outcomes)} done, {self._runner.in_flight} open")
        view.add_row("tokens/s", f"{speed:.0f}")
        view.add_row("first token", f"P50 {median:.0f} ms, P99 {tail:.0f} ms")
        errors = ", ".join(f"{kind} {number}" for kind, number in failed.most_common())
        view.add_row("errors", errors or "none")
        return view
