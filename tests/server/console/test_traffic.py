"""The requests of the last minutes as columns."""

import time

import numpy as np

from server.console.traffic import RecentColumns
from server.request_log.recent import RecentRequests
from server.request_log.record import RequestRecord

SPAN = 600


def record(tenant_id: str = "a", status: int = 200, **fields: object) -> RequestRecord:
    made = RequestRecord(path="/v1/completions", tenant_id=tenant_id, output_tokens=5)
    made.status, made.complete = status, status == 200
    made.ends["sent"] = 0.25
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def update(columns: RecentColumns, recent: RecentRequests, tenant_id: str | None = None):  # type: ignore[no-untyped-def]
    return columns.update(recent.snapshot(), recent.num_added, time.monotonic(), tenant_id)


def test_each_request_is_counted_once_and_each_tenant_sees_its_own() -> None:
    columns, recent = RecentColumns(SPAN), RecentRequests(max_records=4)
    assert len(update(columns, recent)) == 0
    for each in (record(), record("b", 500), record(path="/livez")):
        recent.add(each)
    rows = update(columns, recent)
    assert len(rows) == len(update(columns, recent)) == 2
    assert rows[:, columns.TOKENS].tolist() == [5, 5]
    assert rows[:, columns.FAILED].tolist() == rows[:, columns.ERROR].tolist() == [0, 1]
    assert np.isnan(rows[:, columns.FIRST_TOKEN]).all()
    assert len(update(columns, recent, "b")) == 1
    assert len(update(columns, recent, "nobody")) == 0
    for _ in range(6):  # more than are kept
        recent.add(record("b", 200))
    assert len(update(columns, recent, "b")) == 5


def test_a_look_that_is_late_adds_nothing_twice_and_old_requests_leave() -> None:
    columns, recent = RecentColumns(SPAN), RecentRequests()
    recent.add(record())
    early, num_early = recent.snapshot(), recent.num_added
    recent.add(record())
    now = time.monotonic()
    assert len(columns.update(recent.snapshot(), recent.num_added, now, None)) == 2
    assert len(columns.update(early, num_early, now, None)) == 2
    assert len(columns.update(recent.snapshot(), recent.num_added, now + SPAN + 1, None)) == 0
