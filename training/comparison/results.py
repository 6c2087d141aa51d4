"""The results of a comparison: a row for each arm, and its distance to the best."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapters_registry.rollout.scores import Difference, Scores, difference_of_runs
from training.comparison.trial import Result


@dataclass
class Row:
    """The results of one arm. Metrics are means over seeds; memory is in MiB."""

    name: str
    method: str
    learning_rate: float | None
    runs: list[Scores]
    """The scores of each seed's run."""
    peak_memory_mib: float = 0
    """Peak memory of the process on the host."""
    peak_gpu_memory_mib: float = 0
    """Peak memory of the tensors on the GPU, 0 if there is no GPU."""
    seconds_per_step: float = 0
    train_seconds: float = 0
    num_trainable: int = 0
    artefact_bytes: int = 0
    rate_is_at_edge: bool = False
    """Whether the best rate is the lowest or highest that was tried. Others may be better."""
    validation: list[list[float]] = field(default_factory=list)
    """Pairs of seconds of training and validation loss, from the first seed's run."""

    @property
    def peak_mib(self) -> float:
        """Return the peak of the GPU's memory if there was one, otherwise of the process."""
        return self.peak_gpu_memory_mib or self.peak_memory_mib

    @property
    def scores(self) -> Scores:
        """Return the mean over seeds of each held-out example's scores."""
        first = self.runs[0]
        values = {
            metric: np.mean([run.values[metric] for run in self.runs], axis=0).tolist()
            for metric in first.values
        }
        return Scores(values, first.num_tokens)

    def by_seed(self, metric: str) -> list[float]:
        """Return the metric's mean in each run."""
        return [run.mean(metric) for run in self.runs]

    def spread(self, metric: str) -> float:
        """Return the metric's standard deviation over seeds."""
        return statistics.stdev(self.by_seed(metric)) if len(self.runs) > 1 else 0.0


@dataclass(frozen=True)
class Comparison:
    """All rows, the metric that decides, and each row's paired difference to the best row."""

    metric: str
    num_examples: int
    num_seeds: int
    rows: list[Row]
    behind_best: dict[str, Difference]
    best: str


def make_row(name: str, method: str, rate: float, results: list[Result]) -> Row:
    """Return the row of an arm from the results of its trials, one for each seed."""
    records: list[dict[str, Any]] = [result.record for result in results]
    first = records[0]
    pace = first["train_seconds"] / max(1, first["num_steps_run"])
    return Row(
        name,
        method,
        rate,
        [result.scores for result in results],
        peak_memory_mib=statistics.mean(record["peak_memory_mib"] for record in records),
        peak_gpu_memory_mib=statistics.mean(r.get("peak_gpu_memory_mib", 0) for r in records),
        seconds_per_step=statistics.mean(result.seconds_per_step for result in results),
        train_seconds=statistics.mean(record["train_seconds"] for record in records),
        num_trainable=first["num_trainable"],
        artefact_bytes=results[0].artefact_bytes,
        validation=[[step * pace, loss] for step, loss in first["validation_loss"]],
    )


def summarise(rows: list[Row], metric: str, num_examples: int, num_seeds: int) -> Comparison:
    """Find the best row, and each other row's distance to it on the same examples."""
    sign = -1 if metric == "loss" else 1
    best = max(rows, key=lambda row: sign * row.scores.mean(metric))
    behind = {
        row.name: difference_of_runs(best.runs, row.runs, metric) for row in rows if row is not best
    }
    return Comparison(metric, num_examples, num_seeds, rows, behind, best.name)


def seconds_to_target(row: Row, target_loss: float) -> float | None:
    """Return the seconds of training until validation loss reached a target, None if it didn't."""
    return next((seconds for seconds, loss in row.validation if loss <= target_loss), None)
