"""Compares the log-probabilities that two servers give the same tokens under the same model name.

The tokens are given and not sampled, so a small difference at one token doesn't change the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import httpx

from training.errors import TrainingError

MAX_MEAN_DIFFERENCE = 0.15
"""In nats. Both compute in BF16, in another order. The weights themselves were compared when they
were merged, by stricter bounds (`merge.py`)."""
TIMEOUT_SECONDS = 120.0
TRIES, PAUSE_SECONDS = 20, 1.0
_BUSY = frozenset({429, 503})


@dataclass(frozen=True)
class ModelAt:
    """A model on a server."""

    url: str
    key: str
    model: str


@dataclass(frozen=True)
class ServedParity:
    """The differences of log-probabilities, in nats, over all tokens of the texts but the first."""

    mean_difference: float
    max_difference: float
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"log-probabilities of {self.num_tokens} tokens differ by {self.mean_difference:.2g} "
            f"nats on average, by {self.max_difference:.2g} at most"
        )


def compare_served(one: ModelAt, other: ModelAt, texts: Sequence[Sequence[int]]) -> ServedParity:
    """Compare two models on texts, which are given as token ids.

    Raises:
        TrainingError: a server doesn't answer, or they differ by more than rounding.
    """
    expected, found = (
        list(chain.from_iterable(log_probabilities(model, text) for text in texts))
        for model in (one, other)
    )
    gaps = [abs(a - b) for a, b in zip(expected, found, strict=True)]
    parity = ServedParity(sum(gaps) / len(gaps), max(gaps), len(gaps))
    if not parity.mean_difference <= MAX_MEAN_DIFFERENCE:  # also if it is NaN
        raise TrainingError(
            f"{other.model} at {other.url} answers otherwise than at {one.url}: {parity}"
        )
    return parity


def log_probabilities(served: ModelAt, tokens: Sequence[int]) -> list[float]:
    """Return the log-probability of each token but the first, given the tokens before it.

    Raises:
        TrainingError: the server doesn't answer, or refuses.
    """
    body = {
        "model": served.model,
        "prompt": list(tokens),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    answer = _ask(served, body)
    if answer.is_error:
        raise TrainingError(f"{served.url} refuses {served.model}: {answer.text[:500]}")
    entries = answer.json()["choices"][0]["prompt_logprobs"]
    pairs = zip(tokens[1:], entries[1:], strict=True)
    return [float(entry[str(token)]["logprob"]) for token, entry in pairs]


def _ask(served: ModelAt, body: dict[str, object]) -> httpx.Response:
    """Send a request, again and again while the server is busy."""
    headers = {"Authorization": f"Bearer {served.key}"}
    url = f"{served.url.rstrip('/')}/v1/completions"
    for attempt in range(TRIES):
        try:
            answer = httpx.post(url, json=body, headers=headers, timeout=TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TrainingError(f"{served.url} doesn't answer: {error}") from error
        if answer.status_code not in _BUSY or attempt == TRIES - 1:
            return answer
        time.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")
