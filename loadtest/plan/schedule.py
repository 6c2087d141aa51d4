"""The whole load, decided before it starts: the same scenario and seed give the same schedule.

Pure. Each aspect has its own stream of random numbers, so that another rate or popularity changes
nothing else.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loadtest.plan.arrivals import TraceRow, arrival_times, read_trace
from loadtest.plan.churn_plan import ChurnEvent, plan_churn
from loadtest.plan.distributions import Popularity, Sample, length_drawer, read_dataset
from loadtest.plan.scenario import Closed, Dataset, Requests, Scenario, Tenant, Trace, Truth

DEFAULT_TENANT = "default"
_ASPECTS = ("arrivals", "models", "inputs", "outputs", "thinking", "disconnects", "checks", "seeds")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a conversation."""

    seed: int
    """The seed of the prompt."""
    tokens_in: int
    tokens_out: int
    think_seconds: float = 0.0
    """The pause between the last answer and this turn."""
    hang_up_after: int | None = None
    """Tokens after which the client disconnects."""
    golden: int | None = None
    """The golden prompt that it asks, by number."""
    sample: Sample | None = None
    """The row of a dataset that it sends."""


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation with one model. Most have a single turn."""

    at: float
    """Seconds from the start. It is 0 in a closed loop, where sessions follow one another."""
    tenant: str
    model: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class ClosedLoop:
    """A tenant whose clients wait for their answers."""

    concurrency: int
    sessions: Iterator[Session]


@dataclass(frozen=True)
class Schedule:
    """What a run does. The run uses the iterators up."""

    sessions: Iterator[Session]
    """The sessions of all open loops, by time."""
    closed_loops: tuple[ClosedLoop, ...]
    churn: tuple[ChurnEvent, ...]


def make_schedule(scenario: Scenario) -> Schedule:
    """Decide the whole load of a run.

    Raises:
        LoadTestError: a file that the scenario names can't be used.
    """
    tenants = scenario.tenants or (Tenant(name=DEFAULT_TENANT),)
    open_loops, closed = [], []
    for index, tenant in enumerate(tenants):
        draws = _Draws(scenario, tenant, index)
        if isinstance(draws.arrivals, Closed):
            closed.append(ClosedLoop(draws.arrivals.concurrency, draws.endless()))
        else:
            open_loops.append(draws.timed())
    rng = np.random.default_rng([scenario.seed, len(tenants), len(_ASPECTS)])
    names = list(scenario.made_adapters())
    churn = plan_churn(scenario.churn, names, scenario.duration_seconds, rng)
    merged = heapq.merge(*open_loops, key=lambda session: session.at)
    return Schedule(merged, tuple(closed), churn)


def golden_turn(truth: Truth, prompt: int) -> Turn:
    """Return the turn that asks a golden prompt."""
    return Turn(0, truth.prefix_words, truth.tokens, golden=prompt)


def fingerprint(scenario: Scenario, first: int = 10_000) -> str:
    """Return a digest of the schedule. The same scenario and seed give the same digest."""
    schedule = make_schedule(scenario)
    digest = hashlib.sha256(repr(schedule.churn).encode())
    for sessions in (schedule.sessions, *(loop.sessions for loop in schedule.closed_loops)):
        for session in itertools.islice(sessions, first):
            digest.update(repr(session).encode())
    return digest.hexdigest()[:16]


class _Draws:
    """Draws one tenant's sessions."""

    def __init__(self, scenario: Scenario, tenant: Tenant, index: int) -> None:
        self.arrivals = tenant.arrivals or scenario.arrivals
        self._scenario, self._tenant = scenario, tenant
        requests = tenant.requests or scenario.requests
        self._requests = requests
        self._popularity = Popularity(tenant.adapters or scenario.adapters)
        self._rng = {
            aspect: np.random.default_rng([scenario.seed, index, number])
            for number, aspect in enumerate(_ASPECTS)
        }
        self._samples: list[Sample] = []
        if isinstance(requests.input, Dataset):
            self._samples = read_dataset(requests.input.file)
        else:
            self._input = length_drawer(requests.input)
        self._output = length_drawer(requests.output)

    def endless(self) -> Iterator[Session]:
        """Yield sessions without times, for a closed loop."""
        while True:
            yield self._session(0.0)

    def timed(self) -> Iterator[Session]:
        """Return the sessions of an open loop, by time."""
        seconds, arrivals = self._scenario.duration_seconds, self.arrivals
        if isinstance(arrivals, Trace):
            rows = read_trace(arrivals)
            own = [row for row in rows if row.tenant in (None, self._tenant.name)]
            return (self._session(row.at, row) for row in own if row.at < seconds)
        assert not isinstance(arrivals, Closed)
        times = arrival_times(arrivals, seconds, self._rng["arrivals"])
        return (self._session(at) for at in times)

    def _session(self, at: float, row: TraceRow | None = None) -> Session:
        model = self._popularity.draw(self._rng["models"])
        if row is not None and row.model is not None:
            model = row.model
        truth = self._scenario.truth
        if truth.share and self._rng["checks"].random() < truth.share:
            golden = int(self._rng["checks"].integers(truth.prompts))
            turns: tuple[Turn, ...] = (golden_turn(truth, golden),)
        else:
            turns = tuple(self._turn(number, row) for number in range(self._requests.turns))
        return Session(at, self._tenant.name, model, turns)

    def _turn(self, number: int, row: TraceRow | None) -> Turn:
        rng, requests = self._rng, self._requests
        seed = int(rng["seeds"].integers(1 << 62))
        sample = self._samples[seed % len(self._samples)] if self._samples else None
        tokens_in = 0 if sample else self._input(rng["inputs"])
        tokens_out = self._output(rng["outputs"])
        if sample is not None and sample.output_tokens:
            tokens_out = sample.output_tokens
        if row is not None:
            tokens_in, tokens_out = row.input_tokens or tokens_in, row.output_tokens or tokens_out
        think = rng["thinking"].exponential(requests.think_seconds) if number else 0.0
        hang_up = self._hang_up(requests, tokens_out)
        return Turn(seed, tokens_in, tokens_out, think, hang_up, sample=sample)

    def _hang_up(self, requests: Requests, tokens_out: int) -> int | None:
        rng = self._rng["disconnects"]
        if not requests.disconnect_share or rng.random() >= requests.disconnect_share:
            return None
        return int(rng.integers(1, max(2, tokens_out)))
