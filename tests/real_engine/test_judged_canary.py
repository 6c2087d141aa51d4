"""A judged canary on the real engine: a planted worse version goes back, an equal one goes through.

See `codes` for adapters whose answers are exact. The equal version has the live one's weights and a
digest of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.real_engine.codes import answer, code_of, write_adapter, write_base
from tests.real_engine.running_server import RunningServer

HOME = "/admin/adapters/default/home"
LENGTH = 32
"""Of the right answers: just as long as the judge lets answers become."""
RIGHT, WRONG = 1, 2
"""The numbers of the adapters."""
WAIT_SECONDS = 120
DATA = [
    {
        "messages": [
            {"role": "user", "content": f"question {number}"},
            {"role": "assistant", "content": answer(code_of(RIGHT), LENGTH)},
        ]
    }
    for number in range(10)
]


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with `home`: version 1 is live and right, 2 is wrong, 3 is as right as 1."""
    folder = tmp_path_factory.mktemp("judged")
    write_base(folder / "base")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %} "
    (folder / "base" / "chat_template.jinja").write_text(template)
    for name, number in (("live", RIGHT), ("wrong", WRONG), ("equal", RIGHT)):
        write_adapter(folder / name, number)
    config = folder / "equal" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()), indent=1))
    server = RunningServer(
        tmp_path_factory.mktemp("judging") / "var",
        *("--base", str(folder / "base"), "--local-roots", str(folder)),
        *("--max-loras", "4", "--kv-cache-gib", "0.02"),
    )
    try:
        server.wait_until_ready()
        for name in ("live", "wrong", "equal"):
            body = {"name": "home", "source": str(folder / name)}
            added = server.admin("POST", "/admin/adapters?wait=true", json=body)
            assert added.status_code == 201, added.text
        yield server
    finally:
        server.stop()


def begin(server: RunningServer, version: int) -> None:
    body = {
        "version": version,
        "steps": [20, 50, 100],
        "every_seconds": 3,
        "judge": ["error_rate", "first_token_p95", "answer_length", "evaluation"],
        "min_requests": 20,
        "margins": {"first_token_p95": 5},
        "data": DATA,
        "warm": True,
    }
    begun = server.admin("POST", f"{HOME}/canary", json=body)
    assert begun.status_code == 201, begun.text


def judged(server: RunningServer) -> dict[str, Any]:
    """Send requests until the judge has decided, and return what it says."""
    client, deadline = server.client(), time.monotonic() + WAIT_SECONDS

    def ask(number: int) -> str:
        said = client.chat.completions.create(
            model="home",
            messages=[{"role": "user", "content": f"tell me {number}"}],
            max_tokens=8,
            user=f"user {number}",
        )
        return said.model

    asked = 0
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < deadline:
            list(pool.map(ask, range(asked, asked + 40)))
            asked += 40
            shown: dict[str, Any] = server.admin("GET", f"{HOME}/canary").json()
            if shown["state"] != "running":
                return shown
    raise AssertionError(f"no decision: {shown}")


def live(server: RunningServer) -> list[dict[str, int]]:
    targets: list[dict[str, int]] = server.admin("GET", f"{HOME}/aliases/live").json()["targets"]
    return targets


def test_a_worse_version_goes_back_within_its_first_step(judging: RunningServer) -> None:
    begin(judging, 2)
    shown = judged(judging)
    assert (shown["state"], shown["weight"], shown["finding"]) == ("rolled back", 20, "worse")
    assert "exact_match on 10 held-out conversations is 0.000, live's 1.000" in shown["reason"]
    assert live(judging) == [{"version": 1, "weight": 100}]
    rows = judging.admin("GET", "/admin/audit?action=canary.end").json()["data"]
    assert rows[0]["after"] == {"state": "rolled back", "reason": shown["reason"]}


def test_an_equal_version_goes_through(judging: RunningServer) -> None:
    begin(judging, 3)
    shown = judged(judging)
    assert shown["state"] == "promoted", shown
    assert live(judging) == [{"version": 3, "weight": 100}]
    assert {c["criterion"] for c in shown["comparisons"]} == set(shown["judge"])
    rows = judging.admin("GET", "/admin/audit?action=canary.go_on").json()["data"]
    assert [row["after"]["weight"] for row in reversed(rows)] == [50, 100]
