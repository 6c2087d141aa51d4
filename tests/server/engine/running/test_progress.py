"""The signal behind readiness and the watch for a hang, by plain calls."""

import math

from server.engine.running.progress import Progress


def test_silence_is_counted_until_a_sign_of_life() -> None:
    progress = Progress()
    progress.tick(0.5, 1)
    progress.tick(0.5, 1)
    assert progress.silent_seconds == 1
    progress.sign_of_life()
    assert progress.silent_seconds == 0


def test_an_engine_is_not_blamed_for_time_in_which_this_process_stood_still() -> None:
    progress = Progress()
    progress.tick(600, 0.5)
    assert progress.silent_seconds == 0.5


def test_steps_and_finite_tokens_are_told_apart() -> None:
    progress = Progress()
    assert progress.seconds_since_step(5) == math.inf
    progress.step(10)
    assert progress.seconds_since_step(12) == 2
    assert progress.seconds_since_finite_token(12) == math.inf
    progress.finite_token(11)
    assert progress.seconds_since_finite_token(12) == 1
    assert progress.seconds_since_step(12) == 2
