"""Judged canaries and warm promotions that begin on an adapter's page."""

from __future__ import annotations

import json
from functools import partial
from shutil import copytree

import httpx
import pytest

from adapters_registry.records.catalog import Target
from adapters_registry.registry import Registry
from adapters_registry.rollout.canaries import CanaryRecord
from adapters_registry.rollout.plan import Criterion
from server.api.admin.rollout.canaries import read_latest
from server.residency.leases import Leases
from server.residency.states import Tier
from tests.server.console.conftest import Browser
from tests.tiny import AdapterFactory

PAGE = "/console/adapters/default/home"
FORM = {
    "version": "2",
    "revision": "1",
    "steps": "5, 50, 100",
    "every_minutes": "0.5",
    "min_requests": "30",
    "judge": ["error_rate", "answer_length"],
    "metric": "exact_match",
}
CONVERSATION = {
    "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
}


@pytest.fixture(autouse=True)
def two(registry: Registry, make_adapter: AdapterFactory) -> None:
    """Versions 1 and 2 of default/home; the first is live."""
    for seed in (1, 2):
        stage = partial(copytree, make_adapter(seed=seed), dirs_exist_ok=True)
        version, _ = registry.register("default", "home", "test", stage)
        registry.accept(version, registry.check_files(version))


async def send(browser: Browser, data: str = "", **fields: object) -> httpx.Response:
    """Send the form as a browser does: with a file, which may be empty."""
    headers = {"hx-request": "true", "x-csrf-token": browser.token}
    name = "held-out.jsonl" if data else ""
    files = {"data": (name, data.encode(), "application/octet-stream")}
    form = {**FORM, **fields}
    return await browser.client.post(f"{PAGE}/canary", headers=headers, data=form, files=files)


def latest(registry: Registry) -> CanaryRecord | None:
    return read_latest(registry, "default", "home")


def live(registry: Registry) -> tuple[Target, ...]:
    return registry.get_adapter("default", "home").aliases["live"].targets


async def test_a_judged_canary_begins_as_its_form_says(admin: Browser, registry: Registry) -> None:
    page = await admin.open(PAGE)
    assert "Judged canary of @2 beside @1" in page.text
    done = await send(admin)
    assert done.status_code == 200, done.text
    assert "@2 gets 5 % of the requests from now on, and is judged by" in done.text
    assert "running at 5 %, beside @1" in done.text
    assert live(registry) == (Target(2, 5), Target(1, 95))
    canary = latest(registry)
    assert canary is not None
    assert canary.plan.steps == (5, 50, 100)
    assert (canary.plan.every_seconds, canary.plan.min_requests) == (30, 30)
    assert canary.plan.judge == (Criterion.ERROR_RATE, Criterion.ANSWER_LENGTH)
    assert canary.plan.warm_seconds is None
    stale = await send(admin, steps="1, 100")
    assert stale.status_code == 412, "the page is of before the canary"
    assert latest(registry) == canary


@pytest.mark.parametrize("as_array", [False, True])
async def test_held_out_conversations_are_judged_too(
    admin: Browser, registry: Registry, as_array: bool
) -> None:
    rows = [CONVERSATION, CONVERSATION]
    text = json.dumps(rows) if as_array else "".join(json.dumps(row) + "\n\n" for row in rows)
    done = await send(admin, text, warm="on", judge=[])
    assert done.status_code == 200, done.text
    canary = latest(registry)
    assert canary is not None
    assert canary.plan.judge == (Criterion.EVALUATION,)
    assert canary.plan.warm_seconds is not None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"steps": "5, 50"}, "the last step must be 100"),
        ({"steps": "x"}, "steps"),
        ({"every_minutes": "soon"}, "every_minutes must be a number"),
        ({"every_minutes": "nan"}, "a step lasts"),
        ({"judge": []}, "judge by some of"),
        ({"judge": ["luck"]}, "judge"),
        ({"version": "9"}, "9"),
        ({"data": "{"}, "held-out conversations can"),
        ({"data": '{"messages": []}'}, "messages"),
        ({"data": "[1]"}, "data"),
        ({"data": "[" * 100_000}, "held-out conversations can"),
    ],
)
async def test_a_wrong_form_says_what_is_wrong_and_begins_nothing(
    admin: Browser, registry: Registry, fields: dict[str, str], words: str
) -> None:
    refused = await send(admin, **fields)
    assert 400 <= refused.status_code < 500
    assert words in refused.text
    assert refused.headers["hx-retarget"] == "#messages"
    assert latest(registry) is None
    assert live(registry) == (Target(1, 100),)


async def test_a_warm_promotion_has_the_version_in_memory_first(
    admin: Browser, registry: Registry, leases: Leases
) -> None:
    page = await admin.open(PAGE)
    assert "Warm: wait until every server that serves the adapter has it in memory" in page.text
    done = await admin.ask("POST", f"{PAGE}/aliases", alias="live", version=2, warm="on")
    assert done.status_code == 200, done.text
    assert "The alias live means @2" in done.text
    assert "every server that serves it is warm" in done.text
    assert live(registry) == (Target(2, 100),)
    version = registry.get_version("default", "home", 2)
    assert leases.tier_of(version) is Tier.HOST
