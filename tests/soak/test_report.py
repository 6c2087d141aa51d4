"""A soak's report: what fails it, and that it can be read again."""

from __future__ import annotations

import json
from collections import Counter

from tests.soak.fleet import TENANTS, Fleet
from tests.soak.report import Afterwards, Report, checks_of, rows_of
from tests.soak.sampling import BOUNDS, SERIES_OF_AN_ADAPTER, Samples, series_of
from tests.soak.tally import Tally

CLEAN = Afterwards(leases=0, engine_starts=1, errors_in_log=0, exit_code=0)
PACED = TENANTS[1]


def samples(growing: str = "") -> Samples:
    """Samples of half an hour and of ten changes, in which one series grows."""
    taken = Samples()
    for number in range(360):
        taken.times.append(5.0 * number)
        for name in (*BOUNDS, SERIES_OF_AN_ADAPTER):
            taken.values.setdefault(name, []).append(100.0 + number * (name == growing))
        taken.rows.append(Counter(audit=number // 36, versions=number // 72))
        taken.database_bytes.append(4096 * (number // 36))
    return taken


def failed(tally: Tally, after: Afterwards = CLEAN, taken: Samples | None = None) -> set[str]:
    checks = checks_of(tally, taken or samples(), 1800, after)
    return {check.name for check in checks if not check.is_kept}


def test_a_clean_soak_passes() -> None:
    assert not failed(Tally(right=1000))
    assert all(row.is_flat for row in rows_of(samples()))


def test_anything_wrong_fails_it() -> None:
    assert failed(Tally(wrong=["a: b"])) == {"wrong answers"}
    assert failed(Tally(failed=["a: b"])) == {"failed requests"}
    assert failed(Tally(failed_changes=["a"])) == {"failed changes"}
    left = Afterwards(leases=1, engine_starts=2, errors_in_log=3, exit_code=-9)
    assert len(failed(Tally(), left)) == 4


def test_more_than_a_quota_allows_fails_it() -> None:
    limit = PACED.quota["requests_per_minute"]
    allowed = Tally(admitted=Counter({PACED.name: 31 * limit}))
    assert not failed(allowed)
    allowed.admitted[PACED.name] += 1
    assert failed(allowed) == {f"requests of {PACED.name}"}


def test_rows_beyond_the_changes_fail_it() -> None:
    taken = samples()
    taken.rows[-1]["versions"] += 100
    assert failed(Tally(), taken=taken) == {"rows of history a change"}


def test_series_are_counted_by_what_they_name() -> None:
    page = """# HELP loraplex_requests_total Requests.
loraplex_requests_total{tenant="t",adapter="t/a",endpoint="/v1",code="200"} 1.0
loraplex_requests_total{tenant="t",adapter="t/a",endpoint="/v1",code="429"} 1.0
loraplex_requests_total{tenant="t",adapter="t/b",endpoint="/v1",code="200"} 1.0
loraplex_requests_total{tenant="t",adapter="",endpoint="/v1/models",code="200"} 1.0
loraplex_adapter_resident{adapter="t/a",version="3",tier="slot"} 1.0
vllm:lora_adapter_loaded{adapter_name="t/a",level="gpu",pinned="false"} 1.0
loraplex_engine_starts_total 1.0
"""
    assert series_of(page) == {
        "metric series of no adapter": 2,
        "metric series of versions in memory": 2,
        SERIES_OF_AN_ADAPTER: 1.5,
    }


def test_the_series_that_grows_is_named_and_the_report_can_be_read_again() -> None:
    name = "metric series of no adapter"
    report = Report(
        "make soak",
        "a machine",
        "2026-11-28",
        1800.0,
        500,
        {"requests": "7"},
        checks_of(Tally(), samples(), 1800, CLEAN),
        rows_of(samples(growing=name)),
    )
    assert [row.name for row in report.rows_over()] == [name]
    assert report.failures() == [f"{name} grows by 720 an hour"]
    assert Report.of_json(json.loads(json.dumps(report.to_json()))) == report
    assert f"| {name} | 185.5 | 445.5 |" in report.text()
    assert "**grows**" in report.text()


def test_a_429_counts_as_promised_only_if_the_quota_says_so() -> None:
    limit = PACED.quota["requests_per_minute"]
    assert PACED.promises(f"this tenant may have {limit} requests a minute: wait")
    assert not PACED.promises(f"this tenant may have {limit + 1} requests a minute: wait")
    assert not PACED.promises("this tenant may have 2 requests at a time: wait")
    assert not TENANTS[0].promises("this tenant may have 40 requests a minute: wait")


def test_each_tenant_has_adapters_and_compositions_and_contents_stay_with_their_tenant() -> None:
    fleet = Fleet(500)
    assert len({adapter.subject for adapter in fleet.adapters}) == 500
    assert {adapter.tenant for adapter in fleet.changing()} == set(TENANTS)
    for tenant in TENANTS:
        assert len(fleet.of(tenant)) == 100
        assert len({sum_.content for sum_ in fleet.sums(tenant)}) == 2
    for adapter in fleet.adapters:
        content = fleet.next_content(adapter.number)
        assert content != adapter.number
        assert fleet.adapters[content].tenant == adapter.tenant
