"""Figures: percentiles, throughput, errors, fairness, objectives, and the files they end up in."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from matplotlib.backends.backend_agg import FigureCanvasAgg

from loadtest.errors import LoadTestError
from loadtest.outcome.request_outcome import Outcome
from loadtest.outcome.run_record import ChurnRecord, Run
from loadtest.plan.arrivals import read_trace
from loadtest.plan.scenario import Scenario, Trace
from loadtest.report import plots, report
from loadtest.report.latencies import Latencies
from loadtest.report.measures import jain, summarise
from loadtest.report.page import run_page
from loadtest.report.slo import parse_slo
from tests.loadtest.conftest import SHORT


def outcome(
    due: float, ttft_ms: float, tokens: int = 3, status: str = "ok", model: str = "a"
) -> Outcome:
    made = Outcome("t", model, due, due + 0.001, due + 0.002, tokens, status=status)
    made.first = due + ttft_ms / 1000
    made.gaps = [0.01] * (tokens - 1)
    made.tokens_out, made.tokens_in = tokens, 5
    made.done = made.first + sum(made.gaps)
    made.tier, made.version = "slot", f"default/{model}@1"
    return made


def run_of(outcomes: list[Outcome], **changes: Any) -> Run:
    scenario = Scenario.model_validate({**SHORT, "duration_seconds": 10.0, **changes})
    return Run(scenario, "http://x", "now", seconds=10.0, complete=True, outcomes=outcomes)


def test_percentiles_are_those_of_the_numbers() -> None:
    seconds = np.random.default_rng(1).lognormal(-3, 1, 5000)
    found = Latencies(seconds).summary()
    for name, percentile in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
        expected = np.percentile(seconds, percentile, method="inverted_cdf") * 1000
        assert found[name] == pytest.approx(expected, rel=0.001)
    assert found["mean"] == pytest.approx(seconds.mean() * 1000, rel=0.002)


def test_values_of_one_bucket_are_counted_as_if_one_by_one() -> None:
    micros = np.unique(np.geomspace(1, 3.6e9, 3000).astype(np.int64))
    one_by_one = HdrHistogram(1, 3_600_000_000, 3)
    for value in micros:
        one_by_one.record_value(int(value))
    at_once = HdrHistogram.decode(Latencies(micros / 1e6).encoded())
    assert at_once.equals(one_by_one)


def test_histograms_can_be_read_by_others() -> None:
    made = Latencies([0.001, 0.002, 0.004])
    read = HdrHistogram.decode(made.encoded())
    assert read.get_total_count() == 3
    assert read.get_value_at_percentile(100) == pytest.approx(4000, rel=0.001)


def test_nothing_has_no_percentiles() -> None:
    assert Latencies([None]).summary() == {"count": 0}


def test_a_summary_counts_what_there_is() -> None:
    outcomes = [outcome(i / 10, 100.0) for i in range(90)]
    outcomes += [outcome(9.0, 900.0, status="reset"), outcome(9.1, 5.0, status="hung_up")]
    summary = summarise(run_of(outcomes, warmup_seconds=1.0, goodput={"ttft_ms": 99.0}))
    assert summary["requests"] == {
        "total": 82,
        "ok": 80,
        "hung_up": 1,
        "failed": 1,
        "error_rate": 1 / 82,
    }
    assert list(summary["errors"]) == ["reset"]
    assert summary["throughput"]["output_tokens_per_second"] == pytest.approx(240 / 9)
    assert summary["throughput"]["good_share"] == 0
    assert summary["latency"]["all"]["ttft"]["p99"] == pytest.approx(100, rel=0.001)
    assert summary["latency"]["all"]["tpot"]["p50"] == pytest.approx(10, rel=0.001)
    assert summary["latency"]["tier"]["slot"]["e2e"]["count"] == 80
    assert not summary["tester"]["is_bottleneck"]


def test_a_tester_that_lags_says_so() -> None:
    late = [outcome(i / 10, 50.0) for i in range(50)]
    for made in late:
        made.woken = made.due + 0.02
    summary = summarise(run_of(late))
    assert summary["tester"]["is_bottleneck"]
    assert any("bottleneck" in line for line in report.remarks(summary, []))


def test_jains_index() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([1, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([]) == 1


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        ("ttft_p99<500ms", True),
        ("ttft_p99<0.0999s", False),
        ("e2e_max<=121ms, error_rate<5%", True),
        ("error_rate<0.1%", False),
        ("requests_per_second>5,tokens_per_second>=20", True),
        ("lag_p99<2ms,gap_p50<11ms", True),
    ],
)
def test_objectives(slo: str, met: bool) -> None:
    outcomes = [outcome(i / 10, 100.0) for i in range(99)] + [outcome(9.9, 1.0, status="reset")]
    summary = summarise(run_of(outcomes))
    objectives = parse_slo(slo)
    assert report.has_passed(summary, objectives) is met
    assert any("MISSED" in line for line in report.remarks(summary, objectives)) is not met


def test_an_objective_without_a_value_is_missed() -> None:
    summary = summarise(run_of([outcome(0.1, 1.0, status="connect")]))
    assert not parse_slo("ttft_p99<500ms")[0].is_met(summary)
    assert not report.has_passed(summary, [])


def test_a_run_that_never_left_its_warm_up_says_so() -> None:
    stuck = [outcome(0.0, 1.0, status="unfinished"), outcome(0.0, 1.0)]
    summary = summarise(run_of(stuck, warmup_seconds=1.0))
    assert any("1 of 2 were answered" in line for line in report.remarks(summary, []))
    assert not report.has_passed(summary, [])


@pytest.mark.parametrize(
    "slo", ["ttft", "ttft_p99<500", "ttft_p42<5ms", "error_rate<5ms", "speed>3", "ttft_p99<5.5.5ms"]
)
def test_an_objective_that_cant_be_read_is_refused(slo: str) -> None:
    with pytest.raises(LoadTestError, match="objective"):
        parse_slo(slo)


@pytest.mark.parametrize("status", ["wrong_adapter", "mixed_version", "stale_version"])
def test_one_untrue_answer_fails_a_run(status: str) -> None:
    outcomes = [outcome(i / 10, 100.0) for i in range(50)]
    assert report.has_passed(summarise(run_of(outcomes)), [])
    outcomes.append(outcome(9.0, 100.0, status=status))
    assert not report.has_passed(summarise(run_of(outcomes)), [])


def test_the_files_hold_the_run(tmp_path: Path) -> None:
    run = run_of([outcome(i / 10, 100.0, model=f"a{i % 3}") for i in range(50)])
    run.outcomes.append(outcome(5.0, 10.0, status="reset"))
    run.churn.append(ChurnRecord(1.0, 1.0, 1.2, "promotion", "a1", 2))
    summary = summarise(run)
    report.write(tmp_path, run, summary)
    read = json.loads((tmp_path / report.SUMMARY).read_text())
    assert read["latency"] == summary["latency"]
    rows = list(csv.DictReader((tmp_path / report.REQUESTS).open()))
    assert len(rows) == 51
    assert float(rows[0]["ttft_ms"]) == pytest.approx(100)
    trace = read_trace(Trace(process="trace", file=tmp_path / report.REQUESTS))
    assert [row.model for row in trace][:3] == ["a0", "a1", "a2"]


def test_the_page_needs_nothing_else() -> None:
    run = run_of([outcome(i / 10, 100.0, model=f"<b>{i % 3}") for i in range(50)])
    run.churn.append(ChurnRecord(1.0, 1.0, 1.2, "promotion", "a1", 2))
    page = run_page(run, summarise(run), parse_slo("ttft_p99<500ms"))
    assert page.count("<svg") == 4
    assert "<script" not in page
    assert "src=" not in page
    assert "<b>0" not in page
    assert "objective ttft_p99&lt;500ms: met" in page


def test_a_page_of_a_run_without_answers_can_be_made() -> None:
    run = run_of([outcome(0.5, 1.0, status="connect")])
    assert run_page(run, summarise(run), []).count("<svg") == 4


def test_the_page_says_what_the_terminal_says() -> None:
    run = run_of([outcome(i / 10, 100.0) for i in range(50)])
    page = run_page(run, summarise(run), [])
    cells = page[page.index("<table>") : page.index("</table>")]
    for words in ("first token", "inter-token gap", "time per output token", "end to end", "p99.9"):
        assert f">{words}<" in cells
    for abbreviation in ("ttft", "tpot", "e2e"):
        assert f">{abbreviation}" not in cells


@pytest.mark.parametrize(
    ("kinds", "legend"),
    [
        ([], "<h2>Over the run</h2>"),
        (["promotion"], "(changes: blue promoted)"),
        (["registration", "rollback"], "(changes: green registered, orange rolled back)"),
    ],
)
def test_the_page_explains_the_changes_that_there_were(kinds: list[str], legend: str) -> None:
    run = run_of([outcome(i / 10, 100.0) for i in range(50)])
    run.churn += [ChurnRecord(1.0, 1.0, 1.2, kind, "a1", 2) for kind in kinds]
    assert legend in run_page(run, summarise(run), [])


@pytest.mark.parametrize("num_adapters", [1, 3, 40])
def test_the_label_of_the_colour_bar_is_whole(num_adapters: int) -> None:
    outcomes = [outcome(i / 10, 100.0, model=f"a{i % num_adapters}") for i in range(80)]
    figure = plots.adapter_figure(outcomes, 10.0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    label = figure.axes[-1].yaxis.label.get_window_extent(canvas.get_renderer())
    assert 0 <= label.y0 <= label.y1 <= figure.bbox.height
