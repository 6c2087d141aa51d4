"""`loraplex adapters`, as a person would call it, on the app."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters_registry.registry import Registry
from server.auth import Keys
from server.cli.adapters import listing
from tests.server.cli.commands import run
from tests.tiny import AdapterFactory

pytestmark = pytest.mark.usefixtures("served")


@pytest.fixture
def two_versions(make_adapter: AdapterFactory) -> None:
    """Register `rooms` in two versions; the first is live."""
    for seed in (1, 2):
        run("adapters", "register", "rooms", str(make_adapter(seed=seed)))


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the commands run in a time zone that isn't UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_list_shows_pins_and_why_the_newest_version_was_rejected(
    two_versions: None, make_adapter: AdapterFactory
) -> None:
    run("adapters", "pin", "rooms", "2")
    run("adapters", "register", "rooms", str(make_adapter(config={"use_dora": True})), code=1)
    (adapter,) = json.loads(run("adapters", "list", "--json"))
    assert (adapter["live"], adapter["pinned"], adapter["num_versions"]) == (1, [2], 3)
    newest = adapter["newest"]
    assert (newest["version"], newest["state"]) == (3, "rejected")
    shown = run("adapters", "list")
    assert "3 rejected" in shown
    assert newest["reason"].split()[0] in shown
    run("adapters", "retire", "rooms", "2")
    (adapter,) = json.loads(run("adapters", "list", "--json"))
    assert adapter["pinned"] == []


def test_list_names_versions_that_were_retired(two_versions: None) -> None:
    run("adapters", "retire", "rooms", "2")
    assert "2 retired" in run("adapters", "list")
    assert json.loads(run("adapters", "show", "rooms", "--json"))["newest"]["state"] == "retired"


def test_list_describes_the_newest_ready_version_where_none_is_live(
    two_versions: None, make_adapter: AdapterFactory
) -> None:
    run("adapters", "register", "rooms", str(make_adapter(seed=3, rank=3)))
    run("adapters", "register", "rooms", str(make_adapter(config={"use_dora": True})), code=1)
    (adapter,) = json.loads(run("adapters", "list", "--json"))
    assert (adapter["live"], adapter["described"], adapter["rank"]) == (1, 1, 2)
    assert "(@" not in run("adapters", "list")
    run("adapters", "retire", "rooms", "1", "--force")
    (adapter,) = json.loads(run("adapters", "list", "--json"))
    assert (adapter["live"], adapter["described"], adapter["rank"]) == (None, 3, 3)
    size = next(v["size_bytes"] for v in versions_of("rooms") if v["version"] == 3)
    assert adapter["size_bytes"] == size
    shown = run("adapters", "list")
    assert "3 (@3)" in shown
    assert f"{size / 1e6:.1f} MB (@3)" in shown
    for number in ("2", "3"):
        run("adapters", "retire", "rooms", number)
    (adapter,) = json.loads(run("adapters", "list", "--json"))
    assert (adapter["described"], adapter["rank"], adapter["size_bytes"]) == (None, None, None)
    assert "(@" not in run("adapters", "list")


def versions_of(name: str) -> list[dict[str, Any]]:
    versions: list[dict[str, Any]] = json.loads(run("adapters", "show", name, "--json"))["versions"]
    return versions


def test_show_has_the_versions_of_every_page(
    two_versions: None, make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("adapters", "register", "rooms", str(make_adapter(seed=3)))
    monkeypatch.setattr(listing, "VERSIONS_A_PAGE", 1)
    shown = json.loads(run("adapters", "show", "rooms", "--json"))
    assert [version["version"] for version in shown["versions"]] == [1, 2, 3]


def test_rollback_says_from_where_to_where_and_what_comes_next(two_versions: None) -> None:
    assert "default/rooms@live is @2" in run("adapters", "promote", "rooms", "2")
    said = run("adapters", "rollback", "rooms")
    assert "live: @2 → @1" in said
    assert "a further rollback would go to @2 again" in said
    assert "live: @1 → @2" in run("adapters", "rollback", "rooms")
    canary = run("adapters", "canary", "rooms", "1", "--weight", "10")
    assert "is 10 % @1, 90 % @2" in canary
    said = run("adapters", "rollback", "rooms")
    assert "live: 10 % @1, 90 % @2 → @2" in said
    assert "nothing further to roll back to" in said


def test_retire_says_that_nothing_is_left_to_roll_back_to(two_versions: None) -> None:
    run("adapters", "promote", "rooms", "2")
    said = run("adapters", "retire", "rooms", "1")
    assert "nothing is left to roll default/rooms@live back to" in said
    assert "cannot go back" in run("adapters", "rollback", "rooms", code=1)


def test_retire_of_a_version_that_no_rollback_needs_says_no_more(two_versions: None) -> None:
    assert run("adapters", "retire", "rooms", "2").splitlines() == ["default/rooms@2 is retired"]


async def test_delete_in_service_names_the_flag_here_and_the_parameter_over_http(
    two_versions: None, client: httpx.AsyncClient
) -> None:
    for command in (["delete", "rooms"], ["retire", "rooms", "1"]):
        said = run("adapters", *command, code=1)
        assert "--force" in said
        assert "force=true" not in said
    for path in ("", "/versions/1"):
        refused = await client.delete(f"/admin/adapters/default/rooms{path}")
        assert "?force=true" in refused.json()["error"]["message"]
    assert "is deleted" in run("adapters", "delete", "rooms", "--force")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./no-such-dir", "./no-such-dir isn't there"),
        ("a.safetensors", "a.safetensors isn't there"),
        ("acme/smart-home", "did you mean hf://acme/smart-home?"),
        ("{file}", "is a file: give its directory"),
        (
            "{empty}",
            "/empty: adapter_config.json is missing: an adapter is",
        ),
        ("{pickled}", "converts it: python -c"),
        ("{parent}", "did you mean"),
    ],
)
def test_sources_that_cannot_be_are_refused_before_anything_is_sent(
    source: str,
    message: str,
    tmp_path: Path,
    make_adapter: AdapterFactory,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_adapter()
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_config.json").write_text("{}")
    (tmp_path / "pickled" / "adapter_model.bin").touch()
    places = {
        "file": folder / "adapter_config.json",
        "empty": tmp_path / "empty",
        "pickled": tmp_path / "pickled",
        "parent": tmp_path / "parent",
    }
    (tmp_path / "parent").mkdir()
    os.rename(folder, tmp_path / "parent" / "checkpoint-1")
    if source == "{file}":
        places["file"] = tmp_path / "parent" / "checkpoint-1" / "adapter_config.json"
    sent = _count_posts(monkeypatch)
    assert message in run("adapters", "register", "x", source.format(**places), code=1)
    assert sent == []


def test_a_name_that_is_not_allowed_is_refused_before_the_upload(
    make_adapter: AdapterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = _count_posts(monkeypatch)
    said = run("adapters", "register", "Legal-LoRA", str(make_adapter()), code=1)
    assert "try 'legal-lora'" in said
    assert sent == []


def test_an_absolute_path_may_be_one_on_the_server() -> None:
    said = run("adapters", "register", "x", "/no/such/dir", code=1)
    assert "LORAPLEX_LOCAL_ROOTS" in said


def test_registering_without_a_terminal_shows_no_progress(make_adapter: AdapterFactory) -> None:
    said = run("adapters", "register", "rooms", str(make_adapter()))
    assert said.splitlines()[0].startswith("default/rooms@1 is ready")
    assert "adapter_model.safetensors" not in said


def test_times_are_local_with_their_zone_in_tables_and_utc_in_json(
    two_versions: None, in_new_york: None
) -> None:
    (key, *_) = json.loads(run("keys", "list", "--json"))
    assert key["created_at"].endswith("Z")
    for command in (["adapters", "show", "rooms"], ["audit"], ["tenants", "list"]):
        shown = run(*command)
        assert "EST" in shown or "EDT" in shown


def test_the_audit_trail_has_labels_and_changes_in_words(
    two_versions: None, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = run("keys", "create", "--scope", "admin", "--label", "release").strip()
    monkeypatch.setenv("LORAPLEX_API_KEY", key)
    run("adapters", "promote", "rooms", "2")
    run("adapters", "pin", "rooms", "2")
    run("adapters", "retire", "rooms", "1")
    shown = run("audit", "--limit", "3")
    for words in ("(release)", "targets: @1 → @2", "pinned: no → yes", "state: ready → retired"):
        assert words in shown
    entries = json.loads(run("audit", "--json"))
    assert entries[0]["actor_label"] == "release"
    creates = ("adapter.create", "tenant.create", "key.create", "version.register", "alias.point")
    for entry in entries:
        assert entry["after"], entry
        assert entry["before"] or entry["action"] in creates, entry


def test_without_a_key_the_command_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORAPLEX_API_KEY")
    monkeypatch.setenv("LORAPLEX_DATA_DIR", str(tmp_path / "elsewhere"))
    said = run("adapters", "list", code=1)
    assert f"{tmp_path / 'elsewhere' / 'admin.key'} isn't there" in said
    assert "LORAPLEX_API_KEY" in said
    assert "LORAPLEX_DATA_DIR" in said


def test_a_key_that_the_server_does_not_know_is_named_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORAPLEX_API_KEY")
    monkeypatch.setenv("LORAPLEX_DATA_DIR", str(tmp_path))
    (tmp_path / "admin.key").write_text("lpx-000000000000-no\n")
    assert f"the key is from {tmp_path / 'admin.key'}" in run("adapters", "list", code=1)


def _count_posts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    sent: list[str] = []
    through = httpx.request

    def request(method: str, url: str, **arguments: object) -> httpx.Response:
        if method == "POST":
            sent.append(url)
        return through(method, url, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(httpx, "request", request)
    return sent


def test_what_stands_beside_the_weights_is_sent_and_shown(make_adapter: AdapterFactory) -> None:
    directory = make_adapter()
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert "its own chat template" in run("adapters", "register", "rooms", str(directory))
    assert "its own chat" in run("adapters", "show", "rooms")


def test_files_that_are_not_sent_are_named(
    make_adapter: AdapterFactory,
) -> None:
    directory = make_adapter()
    for name in ("optimizer.pt", "README.md", "training_run.json"):
        (directory / name).write_text("{}")
    said = run("adapters", "register", "rooms", str(directory))
    assert "is ready" in said
    assert "not sent, as the server has no use for these: optimizer.pt\n" in said
