"""The log of requests."""

from __future__ import annotations

import io
import json
import logging
import threading

from server.request_log.lines import MAX_WAITING_LINES, RequestLines, line_of
from server.request_log.recent import RecentRequests
from server.request_log.record import RequestRecord


def _record(**fields: object) -> RequestRecord:
    record = RequestRecord(request_id="r1", method="POST", path="/v1/chat/completions")
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def test_lines_for_programs_are_json() -> None:
    row = json.loads(line_of(_record(status=200, tenant="acme", model="acme/home"), "json"))
    assert (row["request_id"], row["status"], row["tenant"]) == ("r1", 200, "acme")
    assert row["at"].endswith("Z")


def test_a_path_cannot_forge_a_line() -> None:
    for style in ("console", "json"):
        line = line_of(_record(path="/v1/x\n2026 200 GET /forged\x1b[2J"), style)
        assert "\n" not in line
        assert "\x1b" not in line


def test_lines_for_people_say_what_was_cut_off() -> None:
    record = _record(status=200, model="acme/home", version=3, input_tokens=5, output_tokens=7)
    line = line_of(record, "console")
    assert "acme/home@3" in line
    assert "tokens 5+7" in line
    assert "cut off" in line
    record.complete = True
    assert "cut off" not in line_of(record, "console")


def test_lines_are_written_in_order_and_all_at_the_end() -> None:
    text = io.StringIO()
    lines = RequestLines("json", logging.StreamHandler(text))
    for number in range(100):
        lines.write(_record(request_id=f"r{number}"))
    lines.close()
    ids = [json.loads(line)["request_id"] for line in text.getvalue().splitlines()]
    assert ids == [f"r{number}" for number in range(100)]


def test_a_reader_that_stands_still_stops_nobody() -> None:
    goes_on, text = threading.Event(), io.StringIO()

    class Stuck(logging.StreamHandler[io.StringIO]):
        def emit(self, record: logging.LogRecord) -> None:
            goes_on.wait()
            super().emit(record)

    lines = RequestLines("console", Stuck(text))
    for _ in range(MAX_WAITING_LINES + 100):
        lines.write(_record())
    goes_on.set()
    lines.close()
    assert len(text.getvalue().splitlines()) in range(MAX_WAITING_LINES - 1, MAX_WAITING_LINES + 2)


def test_old_records_go_and_so_do_too_many() -> None:
    recent = RecentRequests(max_records=2, max_age_seconds=1000.0)
    for number in range(3):
        recent.add(_record(request_id=f"r{number}"))
    assert [r.request_id for r in recent.find(lambda record: True)] == ["r2", "r1"]
    aged = RecentRequests(max_records=2, max_age_seconds=0.0)
    aged.add(_record())
    assert list(aged.find(lambda record: True)) == []
