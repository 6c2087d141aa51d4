"""Fits times to a measured run, and says how far a simulation of the run is off. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loadtest.capacity.simulation import DISK, HOST, SLOT, Arrival, Served, Setting, simulate
from loadtest.errors import LoadTestError
from loadtest.outcome.golden import name_of
from loadtest.report.recorded import Recorded, Request

MIN_REQUESTS = 20
_LOADED_FROM = {HOST: (HOST,), DISK: (DISK, "origin")}

Values = NDArray[np.float64]


@dataclass
class Measured:
    """Times fitted to a run. Residuals of the fit are bootstrapped."""

    first_token_of: tuple[float, float, float]
    """Seconds: a constant, for each prompt token, for each other request."""
    step_of: tuple[float, float]
    """Seconds: a constant, for each stream."""
    residuals: Values
    loads: dict[str, Values]
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def first_token(self, tokens_in: int, running: int) -> float:
        """Return the seconds from the start to the first token."""
        fixed, per_token, per_request = self.first_token_of
        expected = fixed + per_token * tokens_in + per_request * running
        return max(1e-3, expected + float(self.rng.choice(self.residuals)))

    def step(self, running: int) -> float:
        """Return the seconds between two tokens."""
        return max(1e-4, self.step_of[0] + self.step_of[1] * running)

    def load(self, tier: str) -> float:
        """Return the seconds to load an adapter into a slot from a tier."""
        values = self.loads.get(tier, self.loads.get(HOST, np.zeros(1)))
        return max(0.0, float(self.rng.choice(values)))


def fit(run: Recorded) -> Measured:
    """Fit times to a run.

    Raises:
        LoadTestError: the run is too short.
    """
    answered = [r for r in run.requests if r.ok and r.ttft_ms is not None]
    resident = [r for r in answered if r.tier in ("", SLOT)]
    if len(resident) < MIN_REQUESTS:
        raise LoadTestError(f"the run needs at least {MIN_REQUESTS} answers of resident adapters")
    begun, ended = _edges(answered)
    beside = _beside(resident, begun, ended)
    prompts = np.array([r.input_tokens for r in resident], dtype=float)
    waits = np.array([r.ttft_ms for r in resident], dtype=float) / 1000
    first = _fit_positive(np.column_stack([np.ones(len(waits)), prompts, beside]), waits)
    residuals = waits - (first[0] + first[1] * prompts + first[2] * beside)
    model = Measured((first[0], first[1], first[2]), _fit_step(answered), residuals, {})
    for tier, names in _LOADED_FROM.items():
        cold = [r for r in answered if r.tier in names]
        if cold:
            near = _beside(cold, begun, ended)
            tokens = np.array([r.input_tokens for r in cold], dtype=float)
            expected = first[0] + first[1] * tokens + first[2] * near
            model.loads[tier] = np.array([r.ttft_ms or 0.0 for r in cold]) / 1000 - expected
    return model


def _fit_step(answered: Sequence[Request]) -> tuple[float, float]:
    """Fit the time per token to the average number of open streams."""
    begun, ended = _edges(answered)
    rows = [r for r in answered if r.tpot_ms is not None]
    if not rows:
        return 1e-3, 0.0
    mean_open = np.array(
        [
            np.clip(
                np.minimum(ended, r.done_seconds) - np.maximum(begun, r.at_seconds), 0, None
            ).sum()
            / max(r.e2e_ms / 1000, 1e-6)
            for r in rows
        ]
    )
    tpots = np.array([r.tpot_ms for r in rows], dtype=float) / 1000
    fixed, per_stream = _fit_positive(np.column_stack([np.ones(len(rows)), mean_open]), tpots)
    return fixed, per_stream


def _edges(requests: Sequence[Request]) -> tuple[Values, Values]:
    begun = np.array([r.at_seconds for r in requests])
    return begun, np.array([r.done_seconds for r in requests])


def _beside(requests: Sequence[Request], begun: Values, ended: Values) -> Values:
    """Return how many other requests were open when each arrived."""
    return np.array(
        [((begun < r.at_seconds) & (ended > r.at_seconds)).sum() for r in requests], dtype=float
    )


def _fit_positive(columns: Values, values: Values) -> list[float]:
    """Fit non-negative least squares: drop the most negative coefficient until none is left."""
    used = list(range(columns.shape[1]))
    while used:
        found = np.linalg.lstsq(columns[:, used], values, rcond=None)[0]
        if (found >= 0).all():
            by_column = dict(zip(used, found.tolist(), strict=True))
            return [float(by_column.get(i, 0.0)) for i in range(columns.shape[1])]
        used.remove(used[int(np.argmin(found))])
    return [0.0] * columns.shape[1]


def arrivals_of(run: Recorded, base: str) -> list[Arrival]:
    """Return the run as a trace. Requests that failed are left out: they weren't served."""
    return [
        Arrival(
            request.at_seconds,
            None if request.model == base else name_of(request.model),
            request.input_tokens,
            max(1, request.output_tokens),
        )
        for request in run.requests
        if request.ok
    ]


def resident_at_first(run: Recorded) -> dict[str, str]:
    """Return the adapters that their first request found in a slot or in host memory."""
    found: dict[str, str] = {}
    for request in run.requests:
        if request.tier:
            found.setdefault(name_of(request.model), request.tier)
    return {name: tier for name, tier in found.items() if tier in (SLOT, HOST)}


@dataclass(frozen=True)
class Forecast:
    """What a setting yields. Times are in milliseconds, hits are shares of adapter requests."""

    setting: Setting
    slot_hits: float
    host_hits: float
    ttft_p50: float
    ttft_p99: float
    e2e_p99: float


def forecast(
    arrivals: Sequence[Arrival], setting: Setting, model: Measured, resident: Mapping[str, str]
) -> Forecast:
    """Simulate the requests with a setting."""
    model.rng = np.random.default_rng(0)
    return _forecast(setting, simulate(arrivals, setting, model, resident))


def _forecast(setting: Setting, served: Sequence[Served]) -> Forecast:
    ttft = [s.ttft * 1000 for s in served]
    return _figures(setting, [s.tier for s in served], ttft, [s.e2e * 1000 for s in served])


def measured(run: Recorded, setting: Setting) -> Forecast:
    """Return the figures of the run itself. Hits are NaN if the run doesn't record tiers."""
    answered = [r for r in run.requests if r.ok]
    ttft = [r.ttft_ms or 0.0 for r in answered]
    return _figures(setting, [r.tier for r in answered], ttft, [r.e2e_ms for r in answered])


def _figures(
    setting: Setting, tiers: Sequence[str], ttft_ms: Sequence[float], e2e_ms: Sequence[float]
) -> Forecast:
    known = [tier for tier in tiers if tier]
    hits = [known.count(tier) / len(known) if known else float("nan") for tier in (SLOT, HOST)]
    p50, p99 = (float(np.percentile(ttft_ms, p)) for p in (50, 99))
    return Forecast(setting, hits[0], hits[1], p50, p99, float(np.percentile(e2e_ms, 99)))
