"""The record of a request on the real engine: its stages, tokens and end."""

import time

from tests.real_engine.questions import LIGHTS, say
from tests.real_engine.running_server import RunningServer


def _record(server: RunningServer, request_id: str) -> dict[str, object]:
    answer = server.admin("GET", f"/admin/requests/{request_id}")
    [row] = answer.raise_for_status().json()["data"]
    assert isinstance(row, dict)
    return row


def test_a_request_s_record_and_line(server: RunningServer) -> None:
    answer = server.client().chat.completions.create(
        model="smart-home",
        messages=say(LIGHTS),
        max_tokens=3,
        extra_headers={"x-request-id": "mine-3"},
    )
    row = _record(server, "mine-3")
    assert answer.usage is not None
    assert row["input_tokens"] == answer.usage.prompt_tokens
    assert row["output_tokens"] == 3
    assert row["finish_reasons"] == ["length"]
    assert row["model"] == "default/smart-home"
    stages = row["stages"]
    assert isinstance(stages, dict)
    assert list(stages) == [
        "body", "slot", "load", "prompt", "queue", "first_token", "last_token", "sent",
    ]  # fmt: skip
    assert sum(stages.values()) > 0


def test_a_stream_that_its_client_leaves_is_cut_off(server: RunningServer) -> None:
    stream = server.client().chat.completions.create(
        model="base",
        messages=say("Count to a thousand."),
        max_tokens=400,
        stream=True,
        extra_headers={"x-request-id": "left-early"},
    )
    next(iter(stream))
    stream.close()
    while server.admin("GET", "/admin/requests/left-early").status_code == 404:
        time.sleep(0.1)
    row = _record(server, "left-early")
    assert row["complete"] is False
    assert row["status"] == 200
