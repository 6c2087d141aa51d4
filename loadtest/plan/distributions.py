"""Which adapter, how many tokens: seeded draws. Pure."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Adapters, Fixed, LogNormal, Uniform

BASE = ""
"""Stands for the base until its name on the server is known."""


class Popularity:
    """Draws the model that a request names."""

    def __init__(self, adapters: Adapters) -> None:
        """Read the weights.

        Raises:
            LoadTestError: the file of weights can't be used.
        """
        weights = _weights(adapters)
        total = sum(weights.values())
        shares = {name: w / total * (1 - adapters.base_share) for name, w in weights.items()}
        if adapters.base_share:
            shares[BASE] = shares.get(BASE, 0.0) + adapters.base_share
        self.shares = shares
        self._models = list(shares)
        self._upto = np.cumsum(list(shares.values()))

    def draw(self, rng: np.random.Generator) -> str:
        """Draw a model. `BASE` stands for the base."""
        index = int(np.searchsorted(self._upto, rng.random(), side="right"))
        return self._models[min(index, len(self._models) - 1)]


def _weights(adapters: Adapters) -> dict[str, float]:
    if adapters.file is not None:
        return _weights_of_file(adapters.file)
    exponent = adapters.exponent if adapters.popularity == "zipf" else 0.0
    return {name: 1 / (1 + i) ** exponent for i, name in enumerate(adapters.all_names)}


def _weights_of_file(file: Path) -> dict[str, float]:
    try:
        with file.open(newline="") as rows:
            weights = {row["model"]: float(row["weight"]) for row in csv.DictReader(rows)}
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise LoadTestError(f"{file} has no columns model, weight: {error!r}") from error
    if not weights or min(weights.values()) < 0 or not sum(weights.values()) > 0:
        raise LoadTestError(f"{file}: weights must be positive numbers")
    return weights


def length_drawer(
    length: Fixed | Uniform | LogNormal,
) -> Callable[[np.random.Generator], int]:
    """Return a function that draws a number of tokens."""
    if isinstance(length, Fixed):
        tokens = length.tokens
        return lambda _: tokens
    if isinstance(length, Uniform):
        low, high = length.min, length.max
        return lambda rng: int(rng.integers(low, high + 1))
    low, high = length.min, length.max
    mean, sigma = float(np.log(length.median)), length.sigma
    return lambda rng: int(np.clip(round(rng.lognormal(mean, sigma)), low, high))


@dataclass(frozen=True)
class Sample:
    """A row of a dataset."""

    messages: list[dict[str, Any]]
    output_tokens: int | None


def read_dataset(file: Path) -> list[Sample]:
    """Read the rows of a JSON Lines file.

    Raises:
        LoadTestError: a line can't be used. The message names it.
    """
    samples = []
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"{file}: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
            tokens = row.get("output_tokens")
            samples.append(Sample(messages, int(tokens) if tokens else None))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise LoadTestError(f"{file}, line {number} has neither prompt nor messages") from error
    if not samples:
        raise LoadTestError(f"{file} has no lines")
    return samples
