"""The load is decided beforehand, and is what the scenario says."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.errors import LoadTestError
from loadtest.plan.scenario import Scenario
from loadtest.plan.scenario_file import adjusted, load_scenario, shipped_scenarios
from loadtest.plan.schedule import Session, fingerprint, make_schedule

Make = Callable[..., Scenario]
LONG: dict[str, Any] = {"duration_seconds": 200.0}


def sessions(scenario: Scenario) -> list[Session]:
    return list(make_schedule(scenario).sessions)


def gaps(scenario: Scenario) -> np.ndarray:
    return np.diff([session.at for session in sessions(scenario)])


def test_the_same_seed_gives_the_same_schedule(scenario: Make) -> None:
    churn = {"registrations_per_minute": 60, "promotions_per_minute": 60}
    one = scenario(**LONG, churn=churn, truth={"share": 0.1})
    assert fingerprint(one) == fingerprint(one.model_copy())
    assert fingerprint(one) != fingerprint(adjusted(one, seed=2))


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_begin_with_their_question(name: str) -> None:
    file = Path("loadtest/scenarios") / f"{name.replace('-', '_')}.toml"
    text = (Path(__file__).parents[3] / file).read_text()
    assert text.startswith("question = ")
    assert load_scenario(name).question.endswith("?")
    assert fingerprint(load_scenario(name), first=100)


def test_the_example_of_the_documents_is_a_scenario(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "loadtest.md").read_text()
    (example,) = re.findall(r"```toml\n(question.*?)```", page, re.DOTALL)
    file = tmp_path / "example.toml"
    file.write_text(example)
    assert fingerprint(load_scenario(str(file)), first=100)


def test_another_rate_asks_for_the_same_models(scenario: Make) -> None:
    slow, fast = sessions(scenario(**LONG)), sessions(adjusted(scenario(**LONG), load=120))
    assert len(fast) == pytest.approx(2 * len(slow), rel=0.05)
    for a, b in zip(slow, fast, strict=False):
        assert (a.model, a.turns) == (b.model, b.turns)


def test_poisson_gaps_are_as_wide_as_long(scenario: Make) -> None:
    found = gaps(scenario(**LONG))
    assert found.mean() == pytest.approx(1 / 60, rel=0.05)
    assert found.std() / found.mean() == pytest.approx(1, rel=0.05)


def test_gamma_bursts_have_their_coefficient_of_variation(scenario: Make) -> None:
    found = gaps(scenario(**LONG, arrivals={"process": "gamma", "rate": 60, "cv": 3}))
    assert found.mean() == pytest.approx(1 / 60, rel=0.1)
    assert found.std() / found.mean() == pytest.approx(3, rel=0.1)


def test_a_ramp_ends_at_its_rate(scenario: Make) -> None:
    found = [
        s.at
        for s in sessions(scenario(**LONG, arrivals={"process": "ramp", "rate": 0, "to_rate": 100}))
    ]
    counts, _ = np.histogram(found, [0, 50, 100, 150, 200])
    assert counts == pytest.approx([625, 1875, 3125, 4375], rel=0.12)


def test_zipf_and_the_base_have_their_shares(scenario: Make) -> None:
    adapters = {"count": 4, "popularity": "zipf", "exponent": 1.0, "base_share": 0.2}
    found = Counter(s.model for s in sessions(scenario(**LONG, adapters=adapters)))
    shares = [found[name] / found.total() for name in ("", "load-0", "load-1", "load-3")]
    unit = 0.8 / (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert shares == pytest.approx([0.2, unit, unit / 2, unit / 4], rel=0.1)


def test_popularity_comes_from_a_file(scenario: Make, tmp_path: Path) -> None:
    (tmp_path / "weights.csv").write_text("model,weight\nx,3\ny,1\n")
    adapters = {"popularity": "file", "file": tmp_path / "weights.csv"}
    found = Counter(s.model for s in sessions(scenario(**LONG, adapters=adapters)))
    assert found["x"] / found["y"] == pytest.approx(3, rel=0.1)


def test_lengths_are_what_was_asked_for(scenario: Make) -> None:
    requests = {
        "input": {"kind": "lognormal", "median": 50, "sigma": 0.5, "max": 100},
        "output": {"kind": "uniform", "min": 3, "max": 5},
    }
    turns = [s.turns[0] for s in sessions(scenario(**LONG, requests=requests))]
    assert np.median([turn.tokens_in for turn in turns]) == pytest.approx(50, rel=0.05)
    assert max(turn.tokens_in for turn in turns) == 100
    assert {turn.tokens_out for turn in turns} == {3, 4, 5}


def test_a_dataset_gives_prompts_and_lengths(scenario: Make, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "one", "output_tokens": 7}\n{"prompt": "two"}\n')
    requests = {
        "input": {"kind": "dataset", "file": data},
        "output": {"kind": "fixed", "tokens": 9},
    }
    turns = [s.turns[0] for s in sessions(scenario(requests=requests))]
    said = {(t.sample.messages[0]["content"], t.tokens_out) for t in turns if t.sample}
    assert said == {("one", 7), ("two", 9)}


def test_a_trace_is_replayed(scenario: Make, tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("at_seconds,model,input_tokens,output_tokens\n12,b,5,6\n10,a,3,4\n10.5,,,\n")
    found = sessions(scenario(arrivals={"process": "trace", "file": file, "speed": 4}))
    assert [session.at for session in found] == [0.0, 0.125, 0.5]
    assert [session.model for session in found][::2] == ["a", "b"]
    assert [(s.turns[0].tokens_in, s.turns[0].tokens_out) for s in found][::2] == [(3, 4), (5, 6)]


def test_tenants_have_their_own_load(scenario: Make) -> None:
    tenants = [
        {"name": "slow", "arrivals": {"process": "poisson", "rate": 5}},
        {"name": "fast", "adapters": {"count": 1, "prefix": "own"}},
        {"name": "waiting", "arrivals": {"process": "closed", "concurrency": 2}},
    ]
    schedule = make_schedule(scenario(**LONG, tenants=tenants))
    found = list(schedule.sessions)
    assert [s.at for s in found] == sorted(s.at for s in found)
    counts = Counter(session.tenant for session in found)
    assert counts["fast"] / counts["slow"] == pytest.approx(12, rel=0.1)
    assert {s.model for s in found if s.tenant == "fast"} == {"own-0"}
    (loop,) = schedule.closed_loops
    assert {s.tenant for s in itertools.islice(loop.sessions, 5)} == {"waiting"}


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("question = 'x", "end of document"),
        ("question = 'x'", "arrivals"),
        ("question='x'\narrivals={process='poisson',rate=0}", "arrivals.poisson.rate"),
        ("question='x'\narrivals={process='poison',rate=1}", "poisson"),
        ("question='x'\nspeed=1\narrivals={process='poisson',rate=1}", "speed"),
        (
            "question='x'\narrivals={process='poisson',rate=1}\nadapters={base_share=0.5}",
            "no adapters",
        ),
        (
            "question='x'\narrivals={process='poisson',rate=1}\nrequests={turns=2}",
            "turns > 1 needs api",
        ),
    ],
)
def test_a_bad_scenario_is_named_with_its_reason(tmp_path: Path, toml: str, message: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(toml)
    with pytest.raises(LoadTestError, match=message) as error:
        load_scenario(str(file))
    assert "bad.toml" in str(error.value)


def test_files_that_a_scenario_names_are_read_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "replay.toml"
    file.write_text("question='x?'\n[arrivals]\nprocess='trace'\nfile='trace.csv'\n")
    with pytest.raises(LoadTestError, match="isn't a trace"):
        make_schedule(load_scenario(str(file)))
    (tmp_path / "trace.csv").write_text("at_seconds\n1\n")
    assert len(sessions(load_scenario(str(file)))) == 1
