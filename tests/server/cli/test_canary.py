"""`loraplex adapters canary --steps` and `promote --warm`, as a person would call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.cli.commands import run
from tests.tiny import AdapterFactory


@pytest.fixture(autouse=True)
def rooms(served: None, make_adapter: AdapterFactory) -> None:
    """Register `rooms` in two versions; the first is live."""
    for seed in (1, 2):
        run("adapters", "register", "rooms", str(make_adapter(seed=seed)))


def test_promote_warm_says_where_the_version_is() -> None:
    said = run("adapters", "promote", "rooms", "2", "--warm")
    assert "default/rooms@live is @2" in said
    assert "in memory on 1 server, after" in said
    assert json.loads(run("adapters", "promote", "rooms", "1", "--warm", "--json"))["warm"]


def test_a_judged_canary_is_begun_and_shown(tmp_path: Path) -> None:
    data = tmp_path / "held-out.jsonl"
    data.write_text(json.dumps({"prompt": "Is it on?", "completion": "yes"}) + "\n")
    said = run(
        *("adapters", "canary", "rooms", "2", "--steps", "5,50,100", "--every", "2m"),
        *("--data", str(data), "--margin", "error_rate=0.5", "--min-requests", "7"),
    )
    assert (
        "default/rooms@2 gets 5 % of the requests and is judged by error_rate, first_token_p95, "
        "evaluation beside @1" in said
    )
    shown = json.loads(run("adapters", "canary", "rooms", "--json"))
    assert (shown["steps"], shown["every_seconds"], shown["min_requests"]) == ([5, 50, 100], 120, 7)
    assert "@2 beside @1: running at 5 % (steps 5, 50, 100)" in run("adapters", "canary", "rooms")
    run("adapters", "canary", "rooms", "2", "--weight", "0")
    said = run("adapters", "canary", "rooms")
    assert "ended at 5 %" in said
    assert "live was moved by another change (alias.point)" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--steps", "a,b"), "isn't a list"),
        (("--steps", "1,100", "--weight", "3"), "not both"),
        (("--steps", "1,100", "--every", "soon"), "is no duration"),
        (("--steps", "1,100", "--margin", "error_rate"), "error_rate=0.02"),
        (("--steps", "1,100", "--data", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_options_that_cannot_be(arguments: tuple[str, ...], message: str) -> None:
    assert message in run("adapters", "canary", "rooms", "2", *arguments, code=2)


def test_options_of_another_form_are_not_passed_over() -> None:
    """Without --steps these would begin a split that nobody judges."""
    canary = ("adapters", "canary", "rooms")
    for arguments, message in (
        ((*canary, "2", "--judge", "error_rate"), "--judge is for a canary that is"),
        ((*canary, "2", "--every", "1m", "--weight", "5"), "--every is for a canary that is"),
        ((*canary, "2", "--warm"), "--warm is for a canary that is"),
        ((*canary, "--steps", "1,100"), "name the version"),
        (("adapters", "promote", "rooms", "2", "--warm-seconds", "5"), "give --warm"),
    ):
        assert message in run(*arguments, code=2)
    assert "rooms@live is @1" in run("adapters", "promote", "rooms", "1")


def test_the_server_refuses_what_only_it_can_know() -> None:
    said = run("adapters", "canary", "rooms", "2", "--steps", "1,50", code=1)
    assert "the last step must be 100" in said
    assert "has had no judged canary" in run("adapters", "canary", "rooms", code=1)
