"""What a start needs before anything slow begins."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from adapters_registry.records.keys import KeyPolicy, create_key, new_key
from adapters_registry.records.tables import now
from adapters_registry.registry import Registry
from server.auth import Keys
from server.process.startup import open_registry, provide_admin_key
from server.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("Qwen3MoeForCausalLM", "it is a mixture of experts"),
        ("Gemma3ForConditionalGeneration", "it isn't a model for text alone"),
    ],
)
def test_a_base_of_another_kind_is_refused_before_anything_is_loaded(
    tmp_path: Path, architecture: str, reason: str
) -> None:
    base = tmp_path / "my-base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(SettingsError) as error:
        open_registry(Settings(data_dir=tmp_path / "var"), str(base))
    message = str(error.value)
    assert message.startswith(f"LORAPLEX_BASE (--base): my-base can't be a base: {reason}")
    assert "Qwen 3 (Qwen3ForCausalLM)" in message


def test_keys_get_an_end_at_start_and_the_operators_own_does_not(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text(f"lpx-{'0f' * 6}-{'x' * 32}")
    settings = Settings(data_dir=tmp_path, admin_key_file=file, max_key_days=30)
    keys = Keys(registry, policy=KeyPolicy(settings.longest_key_life))
    registry.apply(create_key, new_key(), "default", ["inference"], label="endless")
    provide_admin_key(settings, keys)
    ends = {key.label: key.expires_at for key in registry.catalog.keys.values()}
    assert ends["installed admin key"] is None
    assert ends["endless"]
    assert abs(ends["endless"] - now() - timedelta(days=30)) < timedelta(hours=1)
    assert "end in 30 days now: 1." in caplog.text
    caplog.clear()
    provide_admin_key(settings, keys)
    assert not caplog.text, "it is said once"
