import pytest

from adapters_registry.content.circuit_breaker import FAILURES, PAUSE_SECONDS, CircuitBreaker
from adapters_registry.errors import StoreUnavailable


def test_a_store_that_fails_is_left_alone_and_then_tried_again() -> None:
    now, num_calls = 0.0, 0
    breaker = CircuitBreaker("s3://there", lambda: now)

    def call(fails: bool) -> None:
        nonlocal num_calls
        with breaker.calling():
            num_calls += 1
            if fails:
                raise StoreUnavailable("no answer")

    for _ in range(FAILURES - 1):
        with pytest.raises(StoreUnavailable, match="no answer"):
            call(fails=True)
    call(fails=False)
    for _ in range(FAILURES):
        with pytest.raises(StoreUnavailable, match="no answer"):
            call(fails=True)
    made = num_calls
    with pytest.raises(StoreUnavailable, match="tried again in 15 s"):
        call(fails=False)
    assert num_calls == made, "nothing is asked of the store meanwhile"
    now += PAUSE_SECONDS
    call(fails=False)
    assert num_calls == made + 1
