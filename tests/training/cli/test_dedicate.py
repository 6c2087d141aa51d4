"""`loraplex dedicate` up to the start: which version is merged, from where, and what is kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import copytree

import pytest

from adapters_registry.content.merged_model import COMPANIONS_FOLDER, MergedVersion
from adapters_registry.records.retirement import retire_version
from adapters_registry.registry import Registry
from server.cli.training import dedicate
from server.process.dedication import merged_in, require_offered
from server.process.startup import open_registry
from server.settings import Settings, SettingsError
from tests.training.adapters import make_adapter
from training.models.checkpoint import Checkpoint

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def settings(tiny_llama: Path, tmp_path: Path) -> Settings:
    return Settings(base=str(tiny_llama), data_dir=tmp_path / "own")


@pytest.fixture
def shared(tiny_llama: Path, tmp_path: Path) -> Iterator[Registry]:
    """The registry of a shared server, in whose data folder is `default/support@1`."""
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "admin.key").write_text("the-key\n")
    registry = open_registry(Settings(base=str(tiny_llama), data_dir=folder), str(tiny_llama))
    adapter = make_adapter(tiny_llama, tmp_path / "adapter")
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    stage = partial(copytree, adapter, dirs_exist_ok=True)
    version, _ = registry.register("default", "support", "test", stage)
    registry.accept(version, registry.check_files(version))
    yield registry
    registry.close()


def test_a_version_is_merged_once_and_knows_what_it_is(
    settings: Settings,
    shared: Registry,
    tiny_llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = dedicate.make("support@1", settings, tmp_path / "shared", is_served=True)
    version = shared.get_version("default", "support", 1)
    model, merged = Path(made.settings.base), merged_in(made.settings.base)
    base = shared.base
    assert merged == MergedVersion(
        "default", "support", 1, version.digest, base.name, base.fingerprint
    )
    assert made.settings.api_key == "the-key"
    own_template = (model / COMPANIONS_FOLDER / "chat_template.jinja").read_text()
    assert own_template == TEMPLATE
    assert (model / "chat_template.jinja").read_text() != TEMPLATE, "a tenant's is never the base's"
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (Checkpoint.open(folder).tensor(name) for folder in (tiny_llama, model))
    assert not before.equal(after)
    said = capsys.readouterr().err
    assert "default/support@1 merged in" in said
    assert "KL" in said
    again = dedicate.make("default/support@1", settings, tmp_path / "shared", is_served=True)
    assert again.settings.base == made.settings.base
    assert "was merged before" in capsys.readouterr().err

    registry = open_registry(again.settings, again.settings.base, merged)
    require_offered(registry, merged)
    registry.apply(retire_version, "default", "support", 1, force=True)
    with pytest.raises(SettingsError, match="offers no such version"):
        require_offered(registry, merged)
    registry.close()


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("wanted", "beside", "changes", "words"),
    [
        ("support", "shared", {}, "names no version: write NAME@3"),
        ("support@live", "shared", {}, "names no version"),
        ("support@2", "shared", {}, "no version 2 of default/support"),
        ("acme/support@1", "shared", {}, "no adapter acme/support"),
        ("support@1", "nowhere", {}, "isn't a folder"),
        ("support@1", "shared", {"data_dir": "shared"}, "a data folder of its own"),
        ("support@1", None, {}, "no API key for the shared server"),
        ("support@1", None, {"api_key": "x", "database_url": "shared"}, "aren't on this machine"),
        ("support@1", "shared", {"max_lora_rank": 1}, ""),
    ],
)
def test_what_cannot_be_merged_says_why(
    settings: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wanted: str,
    beside: str | None,
    changes: dict[str, object],
    words: str,
) -> None:
    if "data_dir" in changes:
        changes = {"data_dir": tmp_path / "shared"}
    if "database_url" in changes:
        changes = {**changes, "database_url": f"sqlite:///{tmp_path}/shared/registry.db"}
    settings = settings.model_copy(update=changes)
    folder = tmp_path / beside if beside else None
    if not words:  # a dedicated server has no limit of ranks
        assert dedicate.make(wanted, settings, folder, is_served=True)
        return
    with pytest.raises(SystemExit) as end:
        dedicate.make(wanted, settings, folder, is_served=True)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "dedicated.json").write_text('{"tenant": "default"}')
    with pytest.raises(SettingsError, match="doesn't name a version"):
        merged_in(str(tmp_path))
    assert merged_in("org/model") is None
