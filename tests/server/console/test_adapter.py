"""An adapter's page and what can be done there."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest
from markupsafe import escape

from adapters_registry.errors import AdapterRejected
from adapters_registry.records.catalog import Target, VersionRecord
from adapters_registry.records.tenants import create_tenant, set_policy, suspend_tenant
from adapters_registry.registry import Registry
from adapters_registry.rollout import canaries
from adapters_registry.rollout.judgement import Judgement, Verdict
from adapters_registry.rollout.plan import CanaryPlan
from adapters_registry.trust.policy import SignatureRule, TenantPolicy, TrustedKey
from server.auth import Keys
from server.residency.leases import Leases
from tests.server.console.conftest import Browser
from tests.signing import SigningKey
from tests.tiny import AdapterFactory

PAGE = "/console/adapters/default/home"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"

Register = Callable[..., VersionRecord]


@pytest.fixture
def register(registry: Registry, make_adapter: AdapterFactory) -> Register:
    """Register a version of default/home that passes the check, or is rejected if it cannot."""

    def register(seed: int, metadata: dict[str, object] | None = None, **recipe: object):  # type: ignore[no-untyped-def]
        stage = partial(copytree, make_adapter(seed=seed, **recipe), dirs_exist_ok=True)
        version, _ = registry.register("default", "home", "test", stage, metadata=metadata)
        try:
            return registry.accept(version, registry.check_files(version))
        except AdapterRejected as rejection:
            return registry.reject(version, rejection.reasons)

    return register


@pytest.fixture
def two(register: Register) -> None:
    register(1, {"evaluation": {"exact_match": 0.71}})
    register(2, {"evaluation": {"exact_match": 0.9}})


def live(registry: Registry) -> tuple[Target, ...]:
    return registry.get_adapter("default", "home").aliases["live"].targets


async def test_the_page_says_who_has_signed(
    admin: Browser, registry: Registry, make_adapter: AdapterFactory, tmp_path: Path
) -> None:
    key, adapter = SigningKey(tmp_path, "the-release-team"), make_adapter()
    policy = TenantPolicy(SignatureRule.REQUIRED, (TrustedKey("the-release-team", key.pem),))
    registry.apply(set_policy, "default", policy)
    key.sign(adapter)
    registry.register("default", "home", "test", partial(copytree, adapter, dirs_exist_ok=True))
    page = await admin.open(PAGE)
    assert f'title="{key.details["fingerprint"]}">signed by the-release-team<' in page.text
    assert "signed_by: the-release-team" in page.text


@pytest.mark.usefixtures("two")
async def test_promote_canary_and_roll_back(admin: Browser, registry: Registry) -> None:
    page = await admin.open(PAGE)
    assert "Canary @2 beside @1" in page.text
    assert "each finishes on the version it began with" in page.text
    done = await admin.ask("POST", f"{PAGE}/aliases", version=2, other=1, weight=10, revision=1)
    assert done.status_code == 200, done.text
    assert live(registry) == (Target(2, 10), Target(1, 90))
    late = await admin.ask("POST", f"{PAGE}/aliases", version=2, other=1, weight=50, revision=1)
    assert late.status_code == 412
    await admin.ask("POST", f"{PAGE}/aliases", version=2)
    assert live(registry) == (Target(2, 100),)
    back = await admin.ask("POST", f"{PAGE}/rollback")
    assert "live points to its previous target again" in back.text
    assert live(registry) == (Target(1, 100),)
    for words in ("alias.rollback", "@2 → @1", "10 % @2, 90 % @1"):
        assert words in back.text


@pytest.mark.usefixtures("two")
async def test_versions_are_compared(admin: Browser) -> None:
    page = await admin.open(PAGE)
    assert "evaluation.exact_match" in page.text
    assert "(+0.19)" in page.text
    assert "Gate report of @2" in page.text


@pytest.mark.usefixtures("two")
async def test_pins_prefetches_and_retirement(
    admin: Browser, registry: Registry, leases: Leases
) -> None:
    assert (await admin.ask("POST", f"{PAGE}/versions/2/pin")).status_code == 200
    assert registry.get_version("default", "home", 2).pinned
    assert (await admin.ask("POST", f"{PAGE}/versions/2/unpin")).status_code == 200
    assert (await admin.ask("POST", f"{PAGE}/versions/1/prefetch")).status_code == 200
    held = await admin.ask("POST", f"{PAGE}/versions/1/retire")
    assert held.status_code == 409
    assert held.headers["hx-retarget"] == "#messages"
    assert (await admin.ask("POST", f"{PAGE}/versions/2/retire")).status_code == 200
    assert registry.get_version("default", "home", 2).state == "retired"


@pytest.mark.usefixtures("two")
async def test_other_aliases_and_sharing(admin: Browser, registry: Registry) -> None:
    await admin.ask("POST", f"{PAGE}/aliases", alias="stable", version=1)
    page = await admin.ask("POST", f"{PAGE}/sharing", shared_with="acme, globex")
    assert "shared with acme, globex" in page.text
    assert "stable" in registry.get_adapter("default", "home").aliases
    await admin.ask("POST", f"{PAGE}/aliases/stable/remove")
    assert "stable" not in registry.get_adapter("default", "home").aliases
    for wrong in ({"version": "x"}, {"version": 9}, {"version": 2, "weight": 10}, {}):
        assert (await admin.ask("POST", f"{PAGE}/aliases", **wrong)).status_code == 400


@pytest.mark.usefixtures("two")
async def test_each_change_asks_first_and_says_what_it_means_for_requests(admin: Browser) -> None:
    await admin.ask("POST", f"{PAGE}/aliases", alias="stable", version=1)
    await admin.ask("POST", f"{PAGE}/aliases", version=2)
    text = (await admin.open(PAGE)).text
    dialogs = re.findall("<dialog.*?</dialog>", text, re.DOTALL)
    assert f'hx-post="{PAGE}' not in re.sub("<dialog.*?</dialog>", "", text, flags=re.DOTALL)
    changes = set()
    for dialog in dialogs:
        found = re.search(rf'hx-post="{PAGE}/([^"]+)"', dialog)
        assert found
        changes.add(found[1])
        words = re.sub("<[^>]+>", "", dialog)
        assert re.search(
            "running requests|requests? runs?|requests that run|on it now", words, re.I
        )
    everything = {"aliases", "aliases/stable/remove", "canary", "rollback", "sharing", "suspend"}
    for number in (1, 2):
        everything |= {f"versions/{number}/{change}" for change in ("pin", "prefetch", "retire")}
    assert changes == everything


@pytest.mark.usefixtures("two")
async def test_suspension_and_resumption(admin: Browser, registry: Registry) -> None:
    page = await admin.ask("POST", f"{PAGE}/suspend", reason=HOSTILE)
    assert "is suspended" in page.text
    assert str(escape(HOSTILE)) in page.text
    assert "<script>alert" not in page.text
    assert 'data-opens="resume"' in page.text
    found = registry.get_adapter("default", "home").suspension
    assert found
    assert found.by_admin
    assert "state suspended" in (await admin.open("/console/adapters")).text
    await admin.ask("POST", f"{PAGE}/resume")
    assert registry.get_adapter("default", "home").suspension is None
    refused = await admin.ask("POST", f"{PAGE}/suspend", reason="x" * 201)
    assert refused.status_code == 400


@pytest.mark.usefixtures("two")
async def test_a_suspended_tenants_session_changes_nothing(
    browser: Browser, registry: Registry, keys: Keys
) -> None:
    await browser.log_in(keys.create("default", ["adapters"]))
    registry.apply(suspend_tenant, "default")
    assert (await browser.open(PAGE)).status_code == 200
    refused = await browser.ask("POST", f"{PAGE}/aliases", version=2)
    assert refused.status_code == 503
    assert live(registry) == (Target(1, 100),)


async def test_what_is_rejected_is_shown_with_every_reason(
    admin: Browser, register: Register, two: None
) -> None:
    version = register(3, config={"r": 3})
    assert version.reasons
    page = await admin.open(PAGE)
    assert "rejected" in page.text
    for reason in version.reasons:
        assert str(escape(reason["message"])) in page.text


async def test_nothing_in_an_adapter_gets_into_the_page(admin: Browser, register: Register) -> None:
    register(1, {HOSTILE: HOSTILE, "evaluation": {HOSTILE: [HOSTILE]}, "checked": HOSTILE})
    register(2, {"note": HOSTILE, "checked": {HOSTILE: HOSTILE}})
    page = await admin.open(PAGE)
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    assert "<img src=x" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "49" not in page.text[page.text.index("&lt;script&gt;") :][:200]


@pytest.mark.usefixtures("two")
async def test_another_tenants_adapter_is_not_there(
    browser: Browser, registry: Registry, keys: Keys
) -> None:
    registry.apply(create_tenant, "acme")
    await browser.log_in(keys.create("acme", ["adapters"]))
    nothing = await browser.ask("GET", "/console/adapters/default/nothing")
    for method, path in (
        ("GET", PAGE),
        ("POST", f"{PAGE}/aliases"),
        ("POST", f"{PAGE}/canary"),
        ("POST", f"{PAGE}/rollback"),
        ("POST", f"{PAGE}/sharing"),
        ("POST", f"{PAGE}/suspend"),
        ("POST", f"{PAGE}/resume"),
        ("POST", f"{PAGE}/versions/1/retire"),
        ("POST", f"{PAGE}/versions/1/prefetch"),
    ):
        answer = await browser.ask(method, path, version=1)
        assert answer.status_code in (403, 404), path
        if method == "GET":
            assert answer.text == nothing.text.replace("default/nothing", "default/home")


@pytest.mark.usefixtures("home")
async def test_pins_are_for_admins(browser: Browser, keys: Keys) -> None:
    await browser.log_in(keys.create("default", ["adapters"]))
    assert "Pin…" not in (await browser.open(PAGE)).text
    assert (await browser.ask("POST", f"{PAGE}/versions/1/pin")).status_code == 403


@pytest.mark.usefixtures("two")
async def test_a_judged_canary_shows_where_it_stands_and_why(
    admin: Browser, registry: Registry
) -> None:
    assert "running at" not in (await admin.open(PAGE)).text
    plan, at = CanaryPlan(steps=(10, 100)), datetime.now(UTC)
    canary = registry.apply(canaries.start, "default", "home", 2, plan, [], at=at)
    assert "running at 10 %, beside @1" in (await admin.open(PAGE)).text
    reason = f"it fails {HOSTILE}"
    evidence = {
        "canary_requests": 120,
        "live_requests": 900,
        "comparisons": [{"criterion": "error_rate", "in_words": HOSTILE, "worse": True}],
    }
    with registry.session() as session:
        canaries.claim(session, [canary.id], "me", at)
    judgement = Judgement(Verdict.ROLL_BACK, "worse", reason, evidence)
    registry.apply(canaries.roll_back, canary.id, "me", judgement, at=at)
    page = (await admin.open(PAGE)).text
    assert "rolled back at 10 %" in page
    assert "120 requests of the canary and 900 of the live version on all servers" in page
    assert str(escape(reason)) in page
    assert HOSTILE not in page
