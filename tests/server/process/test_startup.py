"""What a start needs before anything slow begins."""

import json
from pathlib import Path

import pytest

from server.process.startup import open_registry
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
