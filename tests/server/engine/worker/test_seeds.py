"""Generators of requests whose prompts aren't through stay as they are."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.engine.worker.seeds import without_unfinished


def runner_of(discarded: list[bool], generators: dict[int, str]) -> Any:
    return SimpleNamespace(
        input_batch=SimpleNamespace(num_reqs=len(discarded), generators=generators),
        discard_request_mask=SimpleNamespace(np=np.array([*discarded, True, True])),
    )


def test_only_requests_that_get_a_token_draw() -> None:
    runner = runner_of([True, False, True, False], {0: "a", 1: "b", 3: "d"})
    seen = []

    def sample(given: Any, grammar: str) -> str:
        seen.append(dict(given.input_batch.generators))
        return grammar

    assert without_unfinished(sample)(runner, "grammar") == "grammar"
    assert seen == [{1: "b", 3: "d"}]
    assert runner.input_batch.generators == {0: "a", 1: "b", 3: "d"}


def test_they_come_back_after_an_error() -> None:
    runner = runner_of([True], {0: "a"})

    def fail(_given: Any) -> None:
        raise ValueError("sampling failed")

    with pytest.raises(ValueError, match="sampling failed"):
        without_unfinished(fail)(runner)
    assert runner.input_batch.generators == {0: "a"}
