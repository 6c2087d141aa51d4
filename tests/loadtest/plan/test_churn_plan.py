"""Planned changes are always possible when their time comes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loadtest.plan.churn_plan import plan_churn
from loadtest.plan.scenario import Churn

RATES = st.floats(0, 200)


@given(st.integers(0, 1000), RATES, RATES, RATES, RATES)
def test_no_change_wants_what_isnt_there(
    seed: int, registrations: float, promotions: float, rollbacks: float, retirements: float
) -> None:
    churn = Churn(
        registrations_per_minute=registrations,
        promotions_per_minute=promotions,
        rollbacks_per_minute=rollbacks,
        retirements_per_minute=retirements,
    )
    events = plan_churn(churn, ["a", "b"], 30.0, np.random.default_rng(seed))
    assert [event.at for event in events] == sorted(event.at for event in events)
    there: dict[str, set[int]] = {"a": {0}, "b": {0}}
    live, before = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for event in events:
        name, version = event.adapter, event.version
        if event.kind == "registration":
            assert version not in there[name]
            there[name].add(version)
            continue
        assert version in there[name]
        if event.kind == "promotion":
            assert version != live[name]
            before[name], live[name] = live[name], version
        elif event.kind == "rollback":
            assert version == before[name] != live[name]
            live[name] = version
        else:
            assert version != live[name]
            there[name].remove(version)
