import math

import numpy as np
import pytest

from adapters_registry.rollout.scores import (
    Scores,
    difference_of_runs,
    paired_difference,
    score_answers,
)

RIGHT = ['{"intent": "on", "area": "hall"}', '{"intent": "off"}']


def test_right_answers_score_one() -> None:
    values = score_answers(RIGHT, RIGHT)
    assert set(values) == {"exact_match", "rouge_l", "bleu", "json_valid"}
    for name, scores in values.items():
        assert scores == pytest.approx([1, 1]), name


def test_wrong_answers_score_by_how_wrong_they_are() -> None:
    values = score_answers(['{"intent": "on", "area": "hell"}', "no idea"], RIGHT)
    assert values["exact_match"] == [0, 0]
    assert values["json_valid"] == [1, 0]
    assert 0.5 < values["rouge_l"][0] < 1
    assert values["rouge_l"][1] == 0
    assert 0 < values["bleu"][0] < 1


def test_json_is_judged_only_where_it_is_asked_for() -> None:
    assert "json_valid" not in score_answers(["x", "y"], ["In the kitchen", RIGHT[0]])
    assert score_answers(["3", "[1]"], ["[1]", "[1]"])["json_valid"] == [0, 1]


def test_losses_are_weighed_by_their_tokens() -> None:
    scores = Scores({"loss": [1.0, 3.0]}, num_tokens=[3, 1])
    assert scores.mean("loss") == 1.5
    assert scores.summary() == {"loss": 1.5, "perplexity": round(math.exp(1.5), 4)}


def test_the_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    one = (rng.random(400) < 0.7).astype(float)
    other = np.where(rng.random(400) < 0.2, 0, one)
    difference = paired_difference(
        Scores({"exact_match": one.tolist()}),
        Scores({"exact_match": other.tolist()}),
        "exact_match",
    )
    gaps = one - other
    error = 1.96 * gaps.std() / math.sqrt(400)
    assert difference.mean == pytest.approx(gaps.mean(), abs=1e-4)
    assert difference.low == pytest.approx(gaps.mean() - error, abs=0.01)
    assert difference.high == pytest.approx(gaps.mean() + error, abs=0.01)
    assert difference.is_significant


def test_a_lucky_seed_is_no_merit() -> None:
    def run(hits: int) -> Scores:
        return Scores({"exact_match": [float(i < hits) for i in range(100)]})

    steady, lucky = [run(40), run(40), run(40)], [run(30), run(40), run(80)]
    assert not difference_of_runs(lucky, steady, "exact_match").is_significant
    better = difference_of_runs([run(50), run(49), run(51)], steady, "exact_match")
    assert better.mean == pytest.approx(0.1)
    assert better.is_significant


def test_the_same_answers_do_not_differ() -> None:
    scores = Scores({"exact_match": [0.0, 1.0, 1.0]})
    difference = paired_difference(scores, scores, "exact_match")
    assert (difference.low, difference.mean, difference.high) == (0, 0, 0)
    assert not difference.is_significant
